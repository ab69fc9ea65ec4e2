"""The page at / for people with a browser. Its files are in bert_serving/page/; they need no other host.

The files contain nothing secret, so they need no API key. What the page shows comes from the other routes of this
server, which require one if the server has keys.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Scope

from .operations import OPERATIONS
from .routes import DirectRoute

_PATH = "/page"
_FOLDER = Path(__file__).parents[2] / "page"

#: The page loads scripts, styles and data only from this server, and no other page can show it in a frame.
#: style-src: uPlot and Preact set styles through the DOM, which needs no 'unsafe-inline'.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _PageFiles(StaticFiles):
    """The files of the page with its headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Add the page and its files to the application."""
    index = (_FOLDER / "index.html").read_text()

    async def root(request: Request) -> Response:
        """Return the page to a browser, and a short JSON document to any other client."""
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"status": "live"}, headers={"Vary": "Accept"})
        content = index.replace("{root}", escape(_root_path(request.scope)))
        return Response(content, media_type="text/html", headers={**_HEADERS, "Vary": "Accept"})

    app.router.routes.append(DirectRoute("/", root, method="GET", name="root", dialect=OPERATIONS.tag))
    app.mount(_PATH, GZipMiddleware(_PageFiles(directory=_FOLDER)))


def _root_path(scope: Scope) -> str:
    """Return the prefix under which a proxy serves this application, or an empty string."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")
