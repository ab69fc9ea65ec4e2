"""The environment of a worker: variables for its libraries, which a user may override."""

from __future__ import annotations

import pytest
from bert_serving.server.supervisor.launch import worker_env

DEFAULT = {
    "GOMP_SPINCOUNT": "10000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "128",
}


@pytest.mark.parametrize("present", [{}, {"PATH": "/bin"}, dict.fromkeys(DEFAULT, "")])
def test_a_worker_gets_short_spins_and_small_caches(present: dict[str, str]) -> None:
    assert worker_env(present) == DEFAULT


@pytest.mark.parametrize("name", DEFAULT)
def test_what_the_user_has_set_stays(name: str) -> None:
    assert worker_env({name: "7"}) == {other: value for other, value in DEFAULT.items() if other != name}


def test_a_wait_policy_decides_about_spinning() -> None:
    assert "GOMP_SPINCOUNT" not in worker_env({"OMP_WAIT_POLICY": "passive"})
