"""Server-sent events, as OpenAI's clients read them."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from omnidiff_jax.serving.failures import failure_of

DONE = b"data: [DONE]\n\n"
# A comment; proxies cut connections on which nothing is said.
PULSE = b": \n\n"


def event(data: Any, name: str = "") -> bytes:
    """One event, named or not."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Streamed(StreamingResponse):
    """A response of events; a failure in the middle is the last of them.

    Args:
        events: each as `event` writes it.
        close: called at the end, however it came: at the last event, or because the client left.
    """

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_safely(events), media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _safely(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for piece in events:
            yield piece
    except Exception as error:
        yield event(failure_of(error).body(), "error")
