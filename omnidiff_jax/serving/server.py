"""A served model from its opening to its end: warm before it is ready, drained before it stops."""

import asyncio
import contextlib
import functools
import signal
import socket
import sys
import threading
from collections.abc import Sequence

import numpy as np
import uvicorn

from omnidiff_jax.answering.model import Model
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Waveform
from omnidiff_jax.serving.app import application
from omnidiff_jax.serving.connections import Connection
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.remote import Trusted
from omnidiff_jax.serving.scheduler import Scheduler
from omnidiff_jax.serving.service import Service
from omnidiff_jax.tasks.registry import TASKS

_RATE = 16_000


class Server:
    """A model on a port.

    Attributes:
        url: where it listens, once `listening`.
        service: what it serves.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        trusted: Sequence[str] = (),
        key: str = "",
        warm: Sequence[str] = tuple(TASKS),
        drain: float = 30.0,
    ):
        """Takes the port; nothing is answered before `run`.

        Args:
            model: answers.
            name: what clients call it.
            host: address to listen at.
            port: 0 takes a free one.
            limits: of requests.
            trusted: hosts that media are fetched from.
            key: what clients must show, "" = nothing.
            warm: tasks whose programs are compiled before it is ready.
            drain: seconds that what is under way may take once it is to stop.

        Raises:
            UserError: the port is taken, or not to be had.
        """
        limits = limits or Limits()
        self.service = Service(model, name, limits, Scheduler(model.generator, limits), Trusted(tuple(trusted)), key)
        self._warm, self._drain = warm, drain
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=1024)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen at {host}:{port} ({error}); name another --port or --host") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            application(self.service),
            http=functools.partial(Connection, head=limits.upload),  # type: ignore[arg-type]
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(round(drain), 1),
        )
        self._server = uvicorn.Server(config)
        # Signals are this class's: it drains first.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]

    def run(self) -> None:
        """Serves until `stop`, or SIGTERM or SIGINT in the main thread; ends once what was under way is answered."""
        asyncio.run(self._serve())

    def stop(self) -> None:
        """Takes nothing on any more, lets what is under way end; from any thread."""
        self.service.ready = False
        self._server.should_exit = True

    async def _serve(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        warming = asyncio.create_task(asyncio.to_thread(self._compile))
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self.service.ready = False
            await asyncio.to_thread(self.service.scheduler.close, self._drain)
            warming.cancel()

    def _compile(self) -> None:
        try:
            for task in self._warm:
                if self._server.should_exit:
                    return
                self.service.scheduler.warm(self.service.model.query(_example(task, self.service.model.picture_size)))
        except Exception as error:
            print(f"omnidiff serve: warming up failed: {error}", file=sys.stderr)
            self._server.should_exit = True
            raise
        self.service.ready = True


def _example(name: str, size: int) -> dict[str, object]:
    """A request of a task, of noise."""
    rng = np.random.default_rng(0)
    inputs = {
        "text": "red",
        "image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "audio": Waveform((0.1 * rng.standard_normal(_RATE)).astype(np.float32), _RATE),
        "hole": (0, 0, size // 2, size // 2),
    }
    return {"task": name, **{kind: inputs[kind] for kind in TASKS[name].inputs}}
