"""Write Python's FAQ into a folder, as a text file for each page without its headings, and print its questions.

    python examples/pipelines/write_faq.py faq > questions.txt

docs/applications/pipelines.md uses the folder for the RAG programs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "applications"))

from corpora import python_manual


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pages: dict[str, list[str]] = {}
    for section in python_manual("faq"):
        pages.setdefault(Path(section.path).name, []).extend(section.paragraphs)
        if section.heading.endswith("?"):
            print(section.heading)
    for name, paragraphs in pages.items():
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
