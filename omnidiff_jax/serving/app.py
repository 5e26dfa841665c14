"""The server as an ASGI application."""

import asyncio
import functools
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from omnidiff_jax.errors import UserError
from omnidiff_jax.serving import audio, chat, images
from omnidiff_jax.serving.failures import Failure, failure_of
from omnidiff_jax.serving.gate import Gate
from omnidiff_jax.serving.metrics import CONTENT_TYPE
from omnidiff_jax.serving.openapi import document
from omnidiff_jax.serving.service import Service

Endpoint = Callable[[Request, Service], Awaitable[Response]]

PAGE = Path(__file__).parent / "page"
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": chat.complete,
    "/v1/images/generations": images.generate,
    "/v1/images/edits": images.edit,
    "/v1/audio/speech": audio.speak,
    "/v1/audio/transcriptions": audio.transcribe,
}


def application(service: Service) -> Starlette:
    """The routes of a service: OpenAI's under /v1, /health, /metrics, /openapi.json, and the page at /."""

    def posted(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        @functools.wraps(endpoint)
        async def answer(request: Request) -> Response:
            return await endpoint(request, service)

        return answer

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        service.check_model(request.path_params["name"])
        return JSONResponse(_model(service))

    async def live(request: Request) -> Response:
        alive = service.scheduler.alive
        return JSONResponse({"status": "live" if alive else "not live"}, 200 if alive else 503)

    async def ready(request: Request) -> Response:
        status = "ready" if service.ready else "not ready"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    async def metrics(request: Request) -> Response:
        content = await asyncio.to_thread(service.scheduler.metrics.text)
        return Response(content, headers={"Content-Type": CONTENT_TYPE})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(service.limits, service.name))

    routes = [Route(path, posted(endpoint), methods=["POST"]) for path, endpoint in ENDPOINTS.items()]
    routes += [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", ready),
        Route("/health/ready", ready),
        Route("/health/live", live),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]
    kinds = (Failure, UserError, ClientDisconnect, Exception)
    handlers = {**dict.fromkeys(kinds, _failed), HTTPException: _refused}
    app = Starlette(
        routes=[*routes, *_page()],
        exception_handlers=handlers,  # type: ignore[arg-type]
    )
    app.router.redirect_slashes = False
    app.add_middleware(Gate, service=service, paths=frozenset(route.path for route in routes))
    return app


def _page() -> list[Route]:
    """A route for each file of the page; its index.html is / too."""

    def shown(file: Path) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            # They are small: no parts of them are given, and a range that cannot be is ignored like any.
            request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
            return FileResponse(file)

        return show

    files = sorted(file for file in PAGE.iterdir() if file.is_file())
    names = [(file, f"/{file.name}") for file in files] + [(PAGE / "index.html", "/")]
    return [Route(name, shown(file)) for file, name in names]


def _model(service: Service) -> dict[str, object]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "omnidiff"}


async def _failed(request: Request, error: Exception) -> Response:
    failure = Failure("the client left", status=499) if isinstance(error, ClientDisconnect) else failure_of(error)
    if failure.status == 500 and failure is not error:
        traceback.print_exception(error, file=sys.stderr)
    return _told(failure, failure.headers)


async def _refused(request: Request, error: HTTPException) -> Response:
    words = {404: f"nothing is at {request.url.path[:200]}", 405: f"{request.method} is not taken here"}
    failure = Failure(words.get(error.status_code, str(error.detail)[:200]), status=error.status_code)
    return _told(failure, error.headers)


def _told(failure: Failure, headers: Mapping[str, str] | None) -> Response:
    """A failure as JSON in ASCII: what it names of the request may be no text that can be encoded."""
    return Response(json.dumps(failure.body()), failure.status, headers, "application/json")
