"""Copy the libraries of the page in the browser from npm into its folder, with their licences.

    python scripts/vendor_page.py          copy them again; needs npm and the network
    python scripts/vendor_page.py --check  compare the files with the list; exit with 1 if they differ

The files are used as npm has them, with one change: a module imports another one by its file, because a browser
does not know the names of packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "server/bert_serving/page/vendor"
LIST = FOLDER / "versions.json"
_IMPORTS = {'from"preact"': 'from"./preact.mjs"'}


@dataclass(frozen=True)
class Library:
    """A package of npm. files: from the name in the package to the name in the folder."""

    package: str
    version: str
    licence: str
    licence_file: str
    files: dict[str, str]


LIBRARIES = (
    Library(
        "preact",
        "11.2.0",
        "MIT",
        "LICENSE",
        {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "preact-hooks.mjs"},
    ),
    Library("htm", "3.1.1", "Apache-2.0", "LICENSE", {"dist/htm.mjs": "htm.mjs"}),
    Library(
        "uplot",
        "1.6.32",
        "MIT",
        "LICENSE",
        {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"},
    ),
    Library("@picocss/pico", "2.1.1", "MIT", "LICENSE.md", {"css/pico.min.css": "pico.css"}),
    Library("ml-matrix", "6.15.1", "MIT", "LICENSE", {"matrix.umd.js": "ml-matrix.js"}),
    Library("umap-js", "1.4.0", "Apache-2.0 (package.json: MIT)", "LICENSE", {"lib/umap-js.min.js": "umap.js"}),
    Library("papaparse", "5.7.1", "MIT", "LICENSE", {"papaparse.min.js": "papaparse.js"}),
)


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return check()
    FOLDER.mkdir(exist_ok=True)
    listed = [fetched(library) for library in LIBRARIES]
    LIST.write_text(json.dumps(listed, indent=2) + "\n")
    return 0


def check() -> int:
    """Compare the files with the list of their hashes; return 1 if they differ."""
    hashes = {name: value for each in json.loads(LIST.read_text()) for name, value in each["sha256"].items()}
    found = {path.name: _sha256(path) for path in FOLDER.iterdir() if path != LIST}
    differing = sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name))
    if differing:
        sys.stderr.write(f"{LIST} does not list these files as they are: {', '.join(differing)}\n")
    return 1 if differing else 0


def fetched(library: Library) -> dict[str, object]:
    """Copy the files of a library from npm; return its entry in the list."""
    names = [*library.files.values(), f"{library.package.rpartition('/')[2]}.LICENSE.txt"]
    sources = [*library.files, library.licence_file]
    with tempfile.TemporaryDirectory() as folder:
        spec = f"{library.package}@{library.version}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            for source, name in zip(sources, names, strict=True):
                file = package.extractfile(f"package/{source}")
                assert file is not None, f"{spec} has no file {source}"
                (FOLDER / name).write_text(_for_browsers(file.read().decode()))
    return {
        "package": library.package,
        "version": library.version,
        "licence": library.licence,
        "sha256": {name: _sha256(FOLDER / name) for name in names},
    }


def _for_browsers(content: str) -> str:
    for package, file in _IMPORTS.items():
        content = content.replace(package, file)
    lines = [line for line in content.splitlines(keepends=True) if not line.startswith("//# sourceMappingURL=")]
    return "".join(lines)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
