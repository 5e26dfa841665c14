"""Connections that bring no request: closed after a while, so that those who hold many keep nobody out."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """HTTP/1.1 whose first line and headers arrive in time; bodies are the `Gate`'s.

    Args:
        head: seconds from the connection's beginning, or a later request's first byte, to the end of its headers.
    """

    def __init__(self, *args: Any, head: float, **options: Any):
        super().__init__(*args, **options)
        self._head = head
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete):
            self._wait()
        else:
            self._waited()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waited()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._closing is None:
            self._closing = self.loop.call_later(self._head, self.transport.close)

    def _waited(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
