"""The application: what is at which address, and how failures are said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from terralapse._version import __version__
from terralapse.errors import TerralapseError
from terralapse.serve import api, ask_api, maps, review_api, sample_api, wmts
from terralapse.serve.desk import Desk
from terralapse.serve.guard import Guard
from terralapse.serve.library import Library, NotThereError, said_of
from terralapse.serve.looks import Looker
from terralapse.serve.notebook import Notebook
from terralapse.serve.options import Options
from terralapse.serve.pages import Pages
from terralapse.serve.warm import Warmth

STATIC = Path(str(resources.files("terralapse.serve"))) / "static"
NOTHING = "There is nothing here."
_THREADS = 8  # tiles at once; each holds a few open files and one decoded window


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
    warmth = Warmth(library)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = _THREADS
        if desk is not None:
            desk.start()
        yield
        warmth.stop()
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
    app.state.warmth = warmth
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

    pages = Pages(STATIC)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return pages.file("index.html", request)

    @app.get("/static/{path:path}", include_in_schema=False)
    async def part(path: str, request: Request) -> Response:
        return pages.file(path, request)

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
