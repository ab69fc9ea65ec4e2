"""Chooses one of the model's prompts from what a request says about the purpose of its texts.

APIs have their own words for it: Cohere's and Voyage's `input_type`, Jina's `task`, Vertex AI's `task_type`.
"""

from __future__ import annotations

from collections.abc import Mapping

_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage")

#: The names that models use for their prompts, by the purpose in lower case.
_NAMES = {
    **dict.fromkeys(_QUERY, _QUERY),
    **dict.fromkeys(_DOCUMENT, _DOCUMENT),
    "retrieval_query": _QUERY,
    "retrieval_document": _DOCUMENT,
    "question_answering": _QUERY,
    "fact_verification": _QUERY,
    "code_retrieval_query": _QUERY,
    "nl2code.query": _QUERY,
    "nl2code.passage": _DOCUMENT,
}


def prompt_for(purpose: str | None, prompts: Mapping[str, str]) -> str | None:
    """Return the name of the prompt for a purpose, or None if the model has none for it.

    purpose: the name of a prompt, or what an API calls the purpose of the texts. prompts: the model's prompts.
    """
    if purpose is None:
        return None
    names = (purpose, *_NAMES.get(purpose.lower(), ()))
    return next((name for name in names if name in prompts), None)
