"""The application: a page, and the JSON that it asks for (docs/explore.md lists it). Every answer is read from a Session."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from checkpoints.explore.documents import WindowQuery
from checkpoints.explore.requests import MAX_INT, BeliefRequest, GenerateRequest, TraceRequest
from checkpoints.explore.session import Session
from olmo_train.errors import CheckpointError, ConfigError, ShardError

log = logging.getLogger(__name__)

KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Of the files of the page, by the end of their names."""
LINES = "application/x-ndjson"
Offset = Annotated[int, Query(ge=0, le=MAX_INT)]


def build_app(session: Session) -> FastAPI:
    """The routes; no documentation pages, because these fetch scripts from elsewhere."""
    app = FastAPI(title="olmo explore", docs_url=None, redoc_url=None, openapi_url=None)
    _add_page(app)
    _add_errors(app)
    _add_questions(app, session)
    return app


def page_files() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = resources.files("checkpoints.explore") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


def _add_page(app: FastAPI) -> None:
    files = page_files()

    @app.get("/")
    def index() -> Response:
        return Response(files["index.html"], media_type=KINDS["html"])

    @app.get("/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"there is no {name[:100]!r} here")
        return Response(files[name], media_type=KINDS[name.rpartition(".")[2]])


def _add_questions(app: FastAPI, session: Session) -> None:
    limits = session.config.limits

    @app.get("/api/run")
    def run() -> Response:
        return _json(session.facts())

    @app.post("/api/generate")
    def generate(request: GenerateRequest) -> Response:
        _check_size(request.prompt, "prompt", limits.text)
        return _stream(session.generate(request))

    @app.post("/api/trace")
    def trace(request: TraceRequest) -> Response:
        _check_size(request.text, "text", limits.text)
        _check_size(request.prompt, "prompt", limits.text)
        return _json(session.answer(request))

    @app.post("/api/belief")
    def belief(request: BeliefRequest) -> Response:
        _check_size(request.text, "text", limits.text)
        return _stream(session.believe(request))

    @app.get("/api/document")
    def document(
        corpus: Offset, file: Offset, offset: Offset, length: Offset = 0, start: Offset | None = None, n: Offset = 500
    ) -> Response:
        if not 1 <= n <= limits.window:
            raise HTTPException(422, f"n={n} must be 1 to limits.window={limits.window}")
        return _json(session.window(WindowQuery(corpus, file, offset, length, start, n)))


def _check_size(text: str, name: str, most: int) -> None:
    if len(text) > most:
        told = f"{name} has {len(text):,} characters, limits.text={most:,} are taken; shorten it, or raise the limit"
        raise HTTPException(413, told)


# ---- answers -------------------------------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200) -> Response:
    """ASCII, so that no character of a document can be half of anything."""
    return Response(json.dumps(value, allow_nan=False).encode(), status, media_type="application/json")


def _stream(events: Iterator[dict[str, Any]]) -> StreamingResponse:
    """A line of JSON per event. The events end when the client leaves."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            while (event := await run_in_threadpool(_next, events)) is not None:
                yield json.dumps(event, allow_nan=False).encode() + b"\n"
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    return StreamingResponse(lines(), media_type=LINES)


def _next(events: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """The next event; errors, which cannot change the status any more, are the last one."""
    try:
        return next(events, None)
    except (ConfigError, ShardError, CheckpointError) as error:
        return {"event": "error", "message": str(error)}
    except Exception:
        log.exception("a stream failed")
        return {"event": "error", "message": INTERNAL}


INTERNAL = "the server failed at this; its terminal says how"


def _add_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        return _json({"message": str(error)}, 422 if isinstance(error, ConfigError) else 409)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        told = []
        for found in error.errors()[:10]:
            name = ".".join(str(part) for part in found["loc"][1:])[:100]
            told.append(f"{name}: {found['msg']}" if name else str(found["msg"]))
        return _json({"message": "; ".join(told)}, 422)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json({"message": str(error.detail)}, error.status_code)

    def failed(request: Request, error: Exception) -> Response:
        return _json({"message": INTERNAL}, 500)

    for kind in (ConfigError, ShardError, CheckpointError):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)
