"""For the tests of compiled passes: the operators' code, compiled once for each process of the tests."""

from __future__ import annotations

import pytest
from bert_serving.server.worker.compiled import operators


@pytest.fixture(scope="session")
def code_of_operators(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load the operators' code into this process."""
    compiler = operators.find_compiler()
    assert compiler is not None
    path = tmp_path_factory.mktemp("operators") / "operators.so"
    operators.build(compiler, path)
    operators.use(path)
