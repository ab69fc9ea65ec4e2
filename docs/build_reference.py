"""Builds docs/reference/ from the code.

The pages of classes are made from the docstrings, with griffe, which reads the source and imports nothing. The
pages of settings, HTTP routes and errors are made by reference_tables.py.

    make docs                                    writes the files
    python docs/build_reference.py --check       exits with 1 if a file is not current

The client's page lists what `bert_serving.client` exports. In a docstring, a line `name, name: text` becomes a
list item, an example with `>>>` or an indented block becomes a code block, and all other text becomes paragraphs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import griffe
import reference_tables

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
LINE_LENGTH = 100
QUOTES = "\"'"

CLIENT = "bert_serving.client"
# These names are searched for in all modules.
OPTIONS = ("EncodeOptions",)
TYPES = ("Text", "Texts", "TextPair", "Spans", "Rows", "Tokens")
ENCODER = ("Encoder", "AsyncEncoder", "EncodingError", "ModelError")
SERVER = ("BertServer",)
HEADER = "<!-- Built by `make docs` from the docstrings. Change those instead of this file. -->"

Sections = Mapping[str, Sequence[griffe.Object]]

_ARGUMENT = re.compile(r"(?P<names>`?[a-z_]\w*`?(?:, `?[a-z_]\w*`?)*): (?P<text>.*)")


def main() -> int:
    """Write the pages, or with --check compare them with the files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not current: run `make docs`", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    """Return the text of each page."""
    package = griffe.GriffeLoader(search_paths=[ROOT / "client", ROOT / "server"]).load("bert_serving")
    assert isinstance(package, griffe.Module)
    exports = package[CLIENT.removeprefix("bert_serving.")].exports
    found = [_target(package[f"client.{name}"]) for name in map(str, exports)]
    classes = [each for each in found if isinstance(each, griffe.Class)]
    errors = sorted((each for each in classes if _is_error(each)), key=lambda each: each.lineno or 0)
    clients = sorted((each for each in classes if each.name.endswith("BertClient")), key=_is_variant)
    results = [each for each in classes if each not in errors and each not in clients]
    sections: Sections = {
        "Clients": clients,
        "Results and options": results,
        "All options of a request": [find(package, name) for name in OPTIONS],
        "Errors": errors,
        "Types": [*_types(package)],
    }
    encoder: Sections = {"": [find(package, name) for name in ENCODER]}
    server: Sections = {"": [find(package, name) for name in SERVER]}
    return {
        REFERENCE / "client.md": _page(f"The Python client: `{CLIENT}`", sections),
        REFERENCE / "encoder.md": _page(
            "Without a server: `Encoder` and `AsyncEncoder` of `bert_serving.server`", encoder
        ),
        REFERENCE / "server.md": _page("A server from Python: `bert_serving.server.BertServer`", server),
        REFERENCE / "settings.md": reference_tables.settings_page(),
        REFERENCE / "routes.md": reference_tables.routes_page(),
        REFERENCE / "errors.md": reference_tables.errors_page(),
    }


def _is_error(found: griffe.Class) -> bool:
    return bool(found.module.name == "errors")


def _is_variant(client: griffe.Class) -> bool:
    return bool(client.name != "BertClient")


def find(module: griffe.Module, name: str) -> griffe.Object:
    """Return the class or attribute with this name that a module of the package defines at its top level."""
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            with suppress(LookupError):
                return find(member, name)
        elif member.name == name and isinstance(member, griffe.Class | griffe.Attribute):
            return member
    raise LookupError(f"{module.path} defines no {name}")


def _types(package: griffe.Module) -> Iterator[griffe.Object]:
    for name in TYPES:
        for half in (package["protocol"], package["client"]):
            with suppress(LookupError):
                yield find(half, name)


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    return member.final_target if isinstance(member, griffe.Alias) else member


def _page(title: str, sections: Sections) -> str:
    blocks = [HEADER, f"# {title}"]
    on_page = {each.path for members in sections.values() for each in members}
    for section, members in sections.items():
        blocks += [f"## {section}"] if section else []
        for each in members:
            heading = "###" if section else "##"
            if isinstance(each, griffe.Class):
                blocks += _class_blocks(each, heading, on_page)
            elif isinstance(each, griffe.Attribute):
                blocks += [f"{heading} {each.name}", _code(f"{each.name} = {str(each.value).strip(QUOTES)}")]
                blocks += markdown(each.docstring, ())
    return "\n\n".join(blocks) + "\n"


def _class_blocks(found: griffe.Class, heading: str, on_page: Collection[str]) -> Iterator[str]:
    yield f"{heading} {found.name}"
    yield _code(_class_source(found))
    bases = [base for base in found.resolved_bases if base.path in on_page]
    if bases:
        yield f"Inherits the members of {' and '.join(f'`{base.name}`' for base in bases)}."
    init = found.members.get("__init__")
    parameters = [each.name for each in init.parameters] if isinstance(init, griffe.Function) else []
    yield from markdown(found.docstring, {*parameters, *found.members})
    for member in _members(found, on_page):
        yield f"{heading}# {found.name}.{member.name}"
        if isinstance(member, griffe.Function):
            yield _code("\n".join(map(_def, member.overloads or [member])))
            yield from markdown(member.docstring, {each.name for each in member.parameters})
        elif isinstance(member, griffe.Attribute):
            yield _code(f"{member.name}: {member.annotation}" if member.annotation else member.name)
            yield from markdown(member.docstring, ())


def _members(found: griffe.Class, on_page: Collection[str]) -> Iterator[griffe.Object]:
    """Yield the public members with a docstring, including those inherited from a base that is not on the page."""
    inherited = {name: each for name, each in found.inherited_members.items() if name not in found.members}
    for member in map(_target, {**found.members, **inherited}.values()):
        owner = member.parent.path if member.parent else ""
        if member.docstring and not member.name.startswith("_") and (owner == found.path or owner not in on_page):
            yield member


def _class_source(found: griffe.Class) -> str:
    """Return the class line, and the fields or the arguments of the constructor."""
    bases = ", ".join(str(base) for base in found.bases)
    head = f"class {found.name}({bases})" if bases else f"class {found.name}"
    init = found.members.get("__init__")
    if isinstance(init, griffe.Function):
        return _call(f"class {found.name}", init)
    fields = [
        f"    {name}{f': {member.annotation}' if member.annotation else ''}"
        f"{f' = {member.value}' if member.value is not None else ''}"
        for name, member in found.members.items()
        if isinstance(member, griffe.Attribute) and not name.startswith("_") and "property" not in member.labels
    ]
    return "\n".join([f"{head}:", *fields]) if fields else head


def _def(function: griffe.Function) -> str:
    head = "async def" if "async" in function.labels else "def"
    return _call(f"{head} {function.name}", function)


def _call(head: str, function: griffe.Function) -> str:
    """Return the signature: on one line if it fits, or with a line for each argument."""
    arguments = list(_arguments(function))
    returns = f" -> {function.returns}" if function.returns and function.name != "__init__" else ""
    line = f"{head}({', '.join(arguments)}){returns}"
    if len(line) <= LINE_LENGTH or not arguments:
        return line
    return "\n".join([f"{head}(", *(f"    {argument}," for argument in arguments), f"){returns}"])


def _arguments(function: griffe.Function) -> Iterator[str]:
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    previous = None
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if previous is griffe.ParameterKind.positional_only and kind is not previous:
            yield "/"
        if kind is griffe.ParameterKind.keyword_only and previous not in (
            griffe.ParameterKind.keyword_only,
            griffe.ParameterKind.var_positional,
        ):
            yield "*"
        previous = kind
        star = stars.get(kind) if kind else None
        text = f"{star or ''}{parameter.name}"
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and not star:
            text += f" = {parameter.default}" if parameter.annotation is not None else f"={parameter.default}"
        yield text
    if previous is griffe.ParameterKind.positional_only:
        yield "/"


def _code(text: str) -> str:
    quoted = re.sub(r"'([^'\"]*)'", r'"\1"', text)  # double quotes, as in the code
    return f"```python\n{quoted}\n```"


def markdown(docstring: griffe.Docstring | None, names: Collection[str]) -> Iterator[str]:
    """Yield the blocks of a docstring as Markdown. names: arguments and fields that can have a description."""
    for block in re.split(r"\n\s*\n", docstring.value.strip()) if docstring else ():
        lines = block.splitlines()
        if lines[0].startswith(">>>"):
            yield f"```pycon\n{block}\n```"
        elif all(line.startswith("    ") for line in lines):
            yield f"```text\n{block}\n```"
        else:
            yield "\n".join(_items(list(_split(lines, names))))


def _split(lines: Sequence[str], names: Collection[str]) -> Iterator[str]:
    """Yield the lines. A line is split where the description of an argument begins inside it."""
    inside = "|".join(sorted(map(re.escape, names))) or "(?!)"
    for line in lines:
        *described, last = re.split(rf"(?<=[.;]) (?=(?:{inside})(?:, \w+)*: )", line.rstrip())
        yield from (re.sub(";$", ".", part) for part in described)
        yield last


def _items(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a paragraph; a line that describes an argument starts an item of a list."""
    in_list = False
    for i, line in enumerate(lines):
        starts = i == 0 or lines[i - 1].endswith((".", ";", ":"))
        if starts and (found := _ARGUMENT.fullmatch(line)):
            if i and not in_list:
                yield ""
            in_list = True
            names = ", ".join(f"`{name.strip('`')}`" for name in found["names"].split(", "))
            yield f"- {names}: {_escape(found['text'])}"
        elif in_list and line.startswith(("Raises ", "Returns ")):
            in_list = False
            yield f"\n{_escape(line)}"
        else:
            yield ("  " if in_list else "") + _escape(line.strip())


def _escape(text: str) -> str:
    """Escape characters outside of code that Markdown would read as markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    sys.exit(main())
