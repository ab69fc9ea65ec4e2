"""A type checker accepts correct calls of the clients' methods and reports wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bert_serving.client import EncodeOptionsDict
from bert_serving.protocol import EncodeOptions

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_results_have_their_types_and_wrong_calls_are_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "tests/typing/client_calls.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_call_has_all_options_of_a_request_except_those_for_the_form_of_the_reply() -> None:
    of_replies = {"ragged", "show_tokens", "show_offsets", "show_usage", "on_error"}
    assert set(EncodeOptionsDict.__annotations__) == set(EncodeOptions.__slots__) - of_replies
