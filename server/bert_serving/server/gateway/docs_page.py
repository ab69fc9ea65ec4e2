"""The page /docs and its OpenAPI document, which describes the model that is served now.

The page loads nothing from other hosts: its scripts are those in the package fastapi_offline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import fastapi_offline
import orjson
from bert_serving.protocol import ServingError
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles

from ..settings import own_version
from .known_models import Model
from .openapi import Json, Operation, document
from .service import Service

_FILES = "/static-offline-docs"
_DOCUMENT = "/openapi.json"


class LiveDocument:
    """The OpenAPI document. It is made again when the server has loaded another model, or requires keys now."""

    def __init__(self, service: Service, operations: Sequence[Operation]) -> None:
        self._service = service
        self._operations = operations
        self._made_for: tuple[str | None, bool] | None = None
        self._document: Json = {}

    async def current(self) -> Json:
        """Return the document for the model that is served now."""
        model, has_keys = await self._model(), bool(self._service.keys.names)
        made_for = None if model is None else model.facts["fingerprint"], has_keys
        if made_for != self._made_for:
            self._document = await asyncio.to_thread(
                document,
                self._operations,
                version=own_version(),
                model_name=self._service.model_name,
                model=model,
                has_keys=has_keys,
            )
            self._made_for = made_for
        return self._document

    async def _model(self) -> Model | None:
        try:
            return await self._service.model()
        except (ServingError, TimeoutError):  # it is still being loaded, or the broker does not answer
            return None


def add_docs_page(app: FastAPI, service: Service, operations: Sequence[Operation]) -> None:
    """Add the page, its files and its document to the application."""
    live = LiveDocument(service, operations)
    app.mount(_FILES, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))

    @app.head(_DOCUMENT)
    @app.get(_DOCUMENT)
    async def openapi(request: Request) -> Response:
        """Return the OpenAPI document."""
        content = await live.current()
        if root := _root_path(request):
            content = {**content, "servers": [{"url": root}]}
        return Response(orjson.dumps(content), media_type="application/json")

    @app.head("/docs")
    @app.get("/docs")
    async def docs(request: Request) -> Response:
        """Return the page."""
        root = _root_path(request)
        return get_swagger_ui_html(
            openapi_url=root + _DOCUMENT,
            title=app.title,
            oauth2_redirect_url=None,
            swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_FILES}/favicon.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "defaultModelsExpandDepth": -1},
        )


def _root_path(request: Request) -> str:
    """Return the prefix under which a proxy serves this application, or an empty string."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
