"""What schemathesis must know to test /encode/stream: how bodies of lines are made and replies of lines are read.

tests/service/test_openapi.py names this file in SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import json

import schemathesis
from hypothesis import strategies as st

_ids = st.none() | st.integers() | st.text()
_values = st.text() | st.fixed_dictionaries({"text": st.text()}, optional={"id": _ids}) | st.integers() | st.none()
_bodies = st.lists(_values.map(json.dumps) | st.text(), max_size=5).map("\n".join)


@schemathesis.hook
def before_generate_body(
    context: schemathesis.HookContext, strategy: st.SearchStrategy[object]
) -> st.SearchStrategy[object]:
    """Return the strategy that makes bodies of an operation."""
    return _bodies if context.operation.path == "/encode/stream" else strategy


@schemathesis.deserializer("application/x-ndjson")
def read_lines(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> str:
    """Return the reply as a text in which each line is JSON. Raises ValueError for a line that is not."""
    text = response.text
    for line in text.splitlines():
        json.loads(line)
    return text
