"""schemathesis sends requests made from /openapi.json: every reply is as the document says, and none is 5xx."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.running_server import RunningServer, command
from tests.support.tiny_models import make_classifier
from tests.support.waiting import HANG_S

#: Examples for each route. More find more, but take longer: `make test` must stay short.
_MAX_EXAMPLES = 20
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
_HOOKS = Path(__file__).parents[1] / "support" / "schemathesis_hooks.py"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_classifier(tmp_path_factory.mktemp("classifier"), "bert", num_labels=3)
    with RunningServer("-model_dir", model) as started:
        yield started.wait_ready()


def run_schemathesis(running: RunningServer, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(
            "schemathesis",
            "run",
            f"{running.url}/openapi.json",
            f"--checks={','.join(_CHECKS)}",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={_MAX_EXAMPLES}",
            "--seed=1",
            "--suppress-health-check=all",
            f"--request-timeout={HANG_S}",
            *args,
        ),
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,  # on two busy cores, it takes 200 s
        cwd=folder,  # schemathesis stores its examples in the working folder
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(_HOOKS)},
        check=False,
    )


def test_every_reply_is_as_the_document_says(running: RunningServer, tmp_path: Path) -> None:
    done = run_schemathesis(running, tmp_path)
    assert done.returncode == 0, done.stdout[-10_000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1]) > 500


def test_the_document_lists_the_statuses_of_errors(running: RunningServer) -> None:
    document = httpx.get(f"{running.url}/openapi.json", timeout=HANG_S).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            statuses = {"400", "408", "429", "431", "500", "503", "504"}
            statuses |= {"413"} if method == "post" else set()
            statuses |= {"401"} if operation.get("security") != [] else set()
            assert statuses <= operation["responses"].keys(), f"{method} {path}"
    of_embed, of_cohere = (document["paths"][path]["post"]["responses"] for path in ("/embed", "/v2/embed"))
    assert {"422", "424"} <= of_embed.keys()
    assert not {"422", "424"} & of_cohere.keys()  # Cohere has 400 for every wrong field
