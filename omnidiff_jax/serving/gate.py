"""What every request passes before it is read: the key, its body's size and coding, the time it takes to arrive."""

import asyncio
import hmac
import json
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnidiff_jax.serving.failures import Failure
from omnidiff_jax.serving.service import Service

# Nothing is loaded from elsewhere, nobody frames the page, and only it may ask for the microphone.
_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "font-src 'self'"),
        *("img-src 'self' data: blob:", "media-src 'self' data: blob:", "worker-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Of a body that is refused: how many times the limit, and how long.
_PASSED = 4
_SECONDS = 2.0
_RAW = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


class Gate:
    """Wraps an application.

    Args:
        app: what is behind it.
        service: its key, limits and metrics.
        paths: those that are counted by name.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]):
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        counted = path if path in self._paths else "other"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW]
                self._service.scheduler.metrics.responses.labels(counted, str(message["status"])).inc()
            await send(message)

        try:
            self._check_key(path, headers)
            self._check_size(headers)
            self._check_coding(headers)
        except Failure as failure:
            if headers.get("expect") is None and _size(headers) <= _PASSED * self._service.limits.body:
                await self._emptied(receive)
            await _tell(failure, answer)
            return
        await self._app(scope, self._bounded(receive), answer)

    def _check_key(self, path: str, headers: Headers) -> None:
        """Of /v1 and /metrics, where there is a key."""
        if not self._service.key or not path.startswith(("/v1/", "/metrics")):
            return
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(shown.strip().encode(), self._service.key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Failure(
                "send the server's key as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_size(self, headers: Headers) -> None:
        if _size(headers) > self._service.limits.body:
            raise self._too_large()

    def _check_coding(self, headers: Headers) -> None:
        """A body comes as it is: what is packed may be of any size."""
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", ""):
            raise Failure(f"content-encoding {coding[:40]} is not taken; send the body as it is", status=415)

    def _too_large(self) -> Failure:
        most = self._service.limits.body
        return Failure(f"the body is over the limit of {most} bytes", status=413, code="request_too_large")

    async def _emptied(self, receive: Receive) -> None:
        """Lets a body that is not read pass by, within bounds: a client that is still sending would not hear why."""
        left, until = _PASSED * self._service.limits.body, time.monotonic() + _SECONDS
        more = True
        while more and left > 0 and (wait := until - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(receive(), wait)
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that raises a `Failure` for a body that is too large, or takes too long to arrive."""
        left, until = self._service.limits.body, time.monotonic() + self._service.limits.upload
        whole = False

        async def bounded() -> Message:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise Failure("the body took too long to arrive", status=408, code="timeout") from error
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if left < 0:
                    if not whole:
                        await self._emptied(receive)
                    raise self._too_large()
            return message

        return bounded


def _size(headers: Headers) -> float:
    """Bytes of a body as it says itself."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 20 else float("inf")


async def _tell(failure: Failure, send: Send) -> None:
    content = json.dumps(failure.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    raw = [(name.lower().encode(), value.encode()) for name, value in {**headers, **failure.headers}.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
