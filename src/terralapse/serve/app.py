"""The application: what is at which address, and how failures are said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from terralapse._version import __version__
from terralapse.errors import TerralapseError
from terralapse.serve import api, ask_api, maps, review_api, sample_api, wmts
from terralapse.serve.desk import Desk
from terralapse.serve.guard import Guard
from terralapse.serve.library import Library, NotThereError, said_of
from terralapse.serve.looks import Looker
from terralapse.serve.notebook import Notebook
from terralapse.serve.options import Options

STATIC = Path(str(resources.files("terralapse.serve"))) / "static"
NOTHING = "There is nothing here."
_THREADS = 8  # tiles at once; each holds a few open files and one decoded window


class _Static(StaticFiles):
    """Vendored files have their version in the path and never change; ours are asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Any:
        response = await super().get_response(path, scope)
        if path.replace("\\", "/").startswith("vendor/"):
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def create_app(options: Options, looker: Looker | None = None) -> FastAPI:
    """The server over the results of `options`.

    Args:
        options: what to show, and what may be started.
        looker: who looks at new images; servers of tests share one.

    Raises:
        TerralapseError: a folder that was named and holds a damaged result; a database or a cluster that
            cannot be reached.
    """
    library = Library(options)
    desk = None if options.workspace is None else Desk(options.workspace, options, looker)
    notebook = None if options.kept is None else Notebook(options.kept, options.database)
    answering = ask_api.Answering(options)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = _THREADS
        if desk is not None:
            desk.start()
        yield
        if desk is not None:
            desk.stop()
        if notebook is not None:
            notebook.close()

    app = FastAPI(
        title="terralapse",
        version=__version__,
        description="Results of change detection: facts, polygons, files and tiles.",
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(api.router(library))
    app.include_router(maps.router(library))
    app.include_router(wmts.router(library))
    app.include_router(ask_api.router(library, answering))
    if notebook is not None:
        app.include_router(review_api.router(library, notebook))
        app.include_router(sample_api.router(library, notebook))
    if desk is not None:
        for routes in desk.routers():
            app.include_router(routes)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    app.mount("/static", _Static(directory=STATIC, follow_symlink=False), name="static")
    _say_failures(app)
    app.add_middleware(Guard, options=options)
    return app


def _say_failures(app: FastAPI) -> None:
    """One form for all: `{"detail": sentence}`, and one sentence for all that is not there or not allowed."""

    @app.exception_handler(NotThereError)
    def nothing(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"detail": NOTHING}, 404)

    @app.exception_handler(StarletteHTTPException)
    def refused(_request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (403, 404):
            return JSONResponse({"detail": NOTHING}, 404)
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def misunderstood(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return JSONResponse({"detail": f"{where}: {first['msg']}."}, 422)

    @app.exception_handler(TerralapseError)
    def damaged(_request: Request, error: TerralapseError) -> JSONResponse:
        return JSONResponse({"detail": said_of(error)}, 409)

    @app.exception_handler(FileNotFoundError)
    def gone(_request: Request, _error: FileNotFoundError) -> JSONResponse:
        # A result was replaced or removed between its listing and its reading.
        return JSONResponse({"detail": NOTHING}, 404)

    @app.exception_handler(Exception)
    def broken(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The server failed at this; its log says why."}, 500)
