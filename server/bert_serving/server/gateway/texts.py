"""The texts of a request: checked, freed of characters that are no text, and named in the caller's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
from bert_serving.protocol import (
    EncodeReply,
    InvalidRequest,
    PayloadTooLarge,
    ServingError,
    TextError,
    check_texts,
    has_lone_surrogate,
)
from typing_extensions import TypedDict

from .errors import NoTexts

#: "error": a text that cannot be encoded makes the request fail. "null": its result is null.
OnError: TypeAlias = Literal["error", "null"]

#: Key in the ASGI scope of a request: its TextNotes.
NOTES = "bert_serving.text_notes"

_MAX_HEADER_CHARS = 1000  # proxies limit all headers of a response together to a few kilobytes
#: What an error takes in the reply of the broker and in the notes.
ERROR_BYTES = 1024
_WHOLE = re.compile(r"^texts(?= must)")
_NAME = re.compile(r"(text of |text_pair of )?texts\[(\d+)\]")

# Workers refuse this text, because no vocabulary has a token with this id. It takes the place of a text that was
# already refused here, so that the reply has a place for it.
_REFUSED_TEXT = [(1 << 31) - 1]

#: One result for each text.
Results: TypeAlias = "Sequence[object] | npt.NDArray[np.generic]"


class FailedText(TypedDict):
    """Why a text could not be encoded; it describes TextError in /docs."""

    index: int
    code: str
    message: str


#: The type of the field "errors" in a reply: the texts that have null in place of a result, and why.
FailedTexts: TypeAlias = list[FailedText]


@dataclass(frozen=True, slots=True)
class Names:
    """What the caller's body calls the texts of a request.

    whole: the list that holds them. others: the names of texts that are not in this list, by their index. query:
    the name of the first part of each pair, if the pairs share it. may_be_empty: texts may be empty strings.
    """

    whole: str = "texts"
    others: Mapping[int, str] = field(default_factory=dict)
    query: str | None = None
    may_be_empty: bool = False

    def in_message(self, message: str) -> str:
        """Return an error message with the caller's names in place of `texts`, `texts[0]` and so on."""
        return _NAME.sub(self._name, _WHOLE.sub(self.whole, message))

    def _name(self, match: re.Match[str]) -> str:
        part, index = match[1] or "", int(match[2])
        if self.query is not None:
            return self.query if part == "text of " else f"{self.whole}[{index}]"
        return part + self.others.get(index, f"{self.whole}[{index}]")


@dataclass(slots=True)
class TextNotes:
    """What a response must say about the texts of its request, besides their vectors.

    num_dropped: number of characters that were left out because they are no text. compute_type: "cpu" or "gpu";
    None until a worker has computed texts. errors: the texts that could not be encoded, by index. There are errors
    only if the request allows null in place of a result.
    """

    num_dropped: int = 0
    compute_type: str | None = None
    errors: dict[int, TextError] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Return headers with these facts, and with as many of the errors as have room in a header."""
        headers = {} if self.compute_type is None else {"x-compute-type": self.compute_type}
        if self.num_dropped:
            headers["x-dropped-characters"] = str(self.num_dropped)
        if self.errors:
            headers |= {"x-error-count": str(len(self.errors)), "x-errors": _header_of(self._sorted())}
        return headers

    def fields(self) -> dict[str, list[TextError]]:
        """Return the field "errors" of a response with a JSON object; nothing if there are none."""
        return {"errors": self._sorted()} if self.errors else {}

    def nulled(self, results: Results) -> Results:
        """Return the results of all texts, with None for each text that has an error."""
        if not self.errors:
            return results
        return [None if i in self.errors else result for i, result in enumerate(results)]

    def add_error(self, index: int, error: ServingError) -> None:
        """Note why a text has no result."""
        self.errors[index] = {"index": index, "code": error.code, "message": error.message}

    def add(self, reply: EncodeReply, names: Names) -> None:
        """Note the errors of a reply. An error that was noted before keeps its reason."""
        for error in reply.errors:
            if error["index"] not in self.errors:
                self.errors[error["index"]] = {**error, "message": names.in_message(error["message"])}

    def _sorted(self) -> list[TextError]:
        return [error for _, error in sorted(self.errors.items())]


def _header_of(errors: Iterable[TextError]) -> str:
    """Return a JSON list of the first errors, in ASCII. What is not ASCII becomes a question mark."""
    found, size = [], 2
    for error in errors:
        text = orjson.dumps(error).decode().encode("ascii", "replace").decode()
        size += len(text) + 1
        if size > _MAX_HEADER_CHARS:
            break
        found.append(text)
    return f"[{','.join(found)}]"


def readable_texts(
    texts: object, notes: TextNotes, *, on_error: str, may_be_empty: bool = False, may_be_mixed: bool = True
) -> list[object]:
    """Return texts that the broker accepts.

    NUL and lone surrogates are left out and counted in `notes`. on_error: with "null", each text that is not valid
    is noted, and replaced by one that workers refuse. For the other arguments, see check_texts.
    Raises InvalidRequest or PayloadTooLarge; the message calls the texts `texts`.
    """

    def check(texts: object) -> None:
        check_texts(texts, may_be_empty=may_be_empty, may_be_mixed=may_be_mixed)

    try:
        check(texts)
    except (TypeError, ValueError) as exc:
        if texts == []:
            raise NoTexts(str(exc)) from exc
        if not isinstance(texts, list):
            raise _as_invalid(exc) from exc
    else:
        assert isinstance(texts, list)
        return texts
    texts = [_without_non_text(text, notes) for text in texts]
    try:
        check(texts)
    except (TypeError, ValueError) as exc:
        if on_error != "null":
            raise _as_invalid(exc) from exc
    else:
        return texts
    for i, text in enumerate(texts):
        error = _error_of(check, text)
        if error is not None:
            error.message = _NAME.sub("", error.message).strip(": ")
            notes.add_error(i, error)
            texts[i] = _REFUSED_TEXT
    return texts


def _error_of(check: Callable[[object], None], text: object) -> InvalidRequest | None:
    try:
        check([text])
    except (TypeError, ValueError) as exc:
        return _as_invalid(exc)
    return None


def renamed(error: ServingError, names: Names) -> ServingError:
    """Return an error whose message calls the texts what the caller calls them."""
    error.message = names.in_message(error.message)
    error.args = (error.message,)
    return error


def _as_invalid(exc: TypeError | ValueError) -> InvalidRequest:
    return exc if isinstance(exc, PayloadTooLarge) else InvalidRequest(str(exc))


def _without_non_text(value: object, notes: TextNotes) -> object:
    """Return a text, a pair or a list of tokens without NUL and lone surrogates, and any other value as it is.

    Other servers leave these characters out too: BERT's tokenizers have no token for them, and texts that were
    extracted from files are full of NUL.
    """
    if isinstance(value, str):
        kept = value.replace("\0", "")
        if has_lone_surrogate(kept):
            kept = kept.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
        notes.num_dropped += len(value) - len(kept)
        return kept
    if isinstance(value, list):
        return [_without_non_text(each, notes) if isinstance(each, str) else each for each in value]
    if isinstance(value, dict):
        return {k: _without_non_text(each, notes) if isinstance(each, str) else each for k, each in value.items()}
    return value
