"""Batches on the mesh: this host's streams, a background thread, and a state that follows what was consumed."""

import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from omnidiff_jax.batch import Batch
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches, WorkerBatches, other_streams
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoaderStats:
    """What was consumed so far on this host.

    Attributes:
        batches: number of batches.
        token_efficiency: share of token positions that hold a sample (tail pads included).
        frame_efficiency: share of frame positions that hold speech; 0 where there are none.
        rejected: reason -> samples skipped.
    """

    batches: int
    token_efficiency: float
    frame_efficiency: float
    rejected: dict[str, int]


@dataclasses.dataclass
class _Prepared:
    batch: Batch
    state: dict[str, Any]
    rejected: dict[str, int]
    first_rejected: dict[str, str]
    used: np.ndarray


class Loader:
    """Endless batches for training, prepared in a background thread.

    `get_state` describes the last batch taken with `next`, however many are prepared ahead. Use as a context manager,
    or call `close`.

    Attributes:
        first_rejected: reason -> what was wrong with the first such sample.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        sharding: NamedSharding | None = None,
        reopen: Callable[[], Corpus] | None = None,
    ):
        """Opens this host's streams.

        Args:
            corpus: sources, stages, vocabulary.
            config: order and shape.
            sharding: splits the rows (axis 0) of global batches over the mesh; None gives numpy batches.
            reopen: makes the corpus anew in each of `config.workers` processes, importable; None = there are none.

        Raises:
            UserError: the streams cannot be divided over the hosts of `sharding`.
        """
        self._config, self._sharding = config, sharding
        owned = owned_streams(sharding, config)
        self._host: HostBatches | WorkerBatches = (
            HostBatches(corpus, config, owned)
            if reopen is None or not config.workers
            else WorkerBatches(corpus, config, owned, reopen)
        )
        self._state, self._rejected = self._host.get_state(), self._host.rejected
        self.first_rejected = self._host.first_rejected
        self._used = np.zeros(4, np.int64)
        self._batches = 0
        self._ahead = False
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            self._start()
        prepared = self._queue.get()
        if isinstance(prepared, BaseException):
            self.close()
            raise prepared
        self._state, self._rejected = prepared.state, prepared.rejected
        self.first_rejected = prepared.first_rejected
        self._used += prepared.used
        self._batches += 1
        return prepared.batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_state(self) -> dict[str, Any]:
        """JSON state of all streams of the run after the last consumed batch; every host must call it together."""
        return gathered(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`, on any number of hosts; prepared batches are dropped.

        Raises:
            UserError: the state has another number of streams or other sources.
        """
        if len(state.keys() - {"sources"}) != self._config.streams:
            raise other_streams(state, self._config)
        self.close()
        self._host.set_state(state)
        self._ahead = False
        self._state, self._rejected = self._host.get_state(), self._host.rejected

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many samples this host skipped for it so far."""
        return dict(self._rejected)

    def stats(self) -> LoaderStats:
        """Efficiency and rejects of what this host consumed."""
        tokens, token_room, frames, frame_room = self._used.tolist()
        return LoaderStats(
            self._batches, tokens / max(token_room, 1), frames / max(frame_room, 1), dict(self._rejected)
        )

    def close(self) -> None:
        """Stops the thread; the next `next` continues after the last consumed batch."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                self._drain()
                self._thread.join(timeout=0.01)
            self._thread = None
            self._ahead = True
            self._host.close()

    def _start(self) -> None:
        if self._ahead:
            self._host.set_state(self._state)
            self._ahead = False
        self._queue: queue.Queue[_Prepared | BaseException] = queue.Queue(self._config.prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(self._queue, self._stop), daemon=True, name="loader")
        self._thread.start()

    def _work(self, output: "queue.Queue[_Prepared | BaseException]", stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                batch = next(self._host)
                used = usage(batch)
                host = self._host
                told = host.get_state(), host.rejected, host.first_rejected
                output.put(_Prepared(self._place(batch), *told, used))
        except BaseException as error:  # handed to the consumer
            output.put(error)

    def _drain(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            pass

    def _place(self, batch: Batch) -> Batch:
        if self._sharding is None:
            return batch
        rows = self._config.batch_size
        return jax.tree.map(
            lambda local: jax.make_array_from_process_local_data(self._sharding, local, (rows, *local.shape[1:])), batch
        )


def owned_streams(sharding: NamedSharding | None, config: DataConfig) -> list[int]:
    """The streams whose rows this process holds under `sharding`; all of them without one.

    Processes that hold the same rows (their devices differ along tensor or sequence axes) own the same streams.

    Raises:
        UserError: a process would hold part of a stream.
    """
    if sharding is None:
        return list(range(config.streams))
    per_stream = config.rows_per_stream
    owned: set[int] = set()
    held = np.zeros(config.batch_size, bool)
    for index in sharding.addressable_devices_indices_map((config.batch_size,)).values():
        held[index] = True
    owned = {int(row) // per_stream for row in np.flatnonzero(held)}
    if len(owned) * per_stream != held.sum():
        hosts = jax.process_count()
        raise UserError(
            f"streams = {config.streams} cannot be divided over {hosts} hosts: each must own whole streams; "
            "use a number of streams that the number of hosts divides"
        )
    return sorted(owned)


def gathered(state: dict[str, Any]) -> dict[str, Any]:
    """The union of every process's {stream: state}; a collective when there are several."""
    if jax.process_count() == 1:
        return state
    payload = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(payload)]))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(payload)] = payload
    every = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    union: dict[str, Any] = {}
    for size, content in zip(sizes, every, strict=True):
        union |= json.loads(content[:size].tobytes())
    return union


def usage(batch: Batch) -> np.ndarray:
    """int64 [4]: token positions used and there at all, frame positions used and there at all."""
    tokens = batch.inputs.segment_ids
    speech = batch.inputs.speech
    frames = (np.count_nonzero(speech.segment_ids), speech.segment_ids.size) if speech is not None else (0, 0)
    return np.array([np.count_nonzero(tokens), tokens.size, *frames], np.int64)
