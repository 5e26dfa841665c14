"""A server in a thread of this process, for the tests that meet it from outside."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from omnidiff_jax.serving.server import Server


@contextlib.contextmanager
def serving(model, name: str = "nano", **options) -> Iterator[Server]:
    """A ready server of a model, nothing warmed up."""
    server = Server(model, name, **{"warm": (), "drain": 60, **options})
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.service.ready:
            time.sleep(0.02)
        yield server
    finally:
        server.stop()
        thread.join()
