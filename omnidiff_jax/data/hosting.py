"""The rows of some of the streams as numpy batches: in this thread, or read by grain's worker processes."""

import collections
import concurrent.futures
import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
from absl import flags

from omnidiff_jax.batch import Batch
from omnidiff_jax.data.assemble import Sample, assemble
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.streams import Corpus, StreamDataset
from omnidiff_jax.errors import UserError
from omnidiff_jax.workers import follow_parent


class HostBatches:
    """The rows of some of the streams as numpy batches; everything but the mesh and the thread."""

    def __init__(self, corpus: Corpus, config: DataConfig, owned: Sequence[int] | None = None):
        """Args: what the run shares, its config, the streams owned here (default: all)."""
        self._corpus, self._config = corpus, config
        numbers = range(config.streams) if owned is None else sorted(owned)
        self._streams = {number: iter(StreamDataset(corpus, config, number)) for number in numbers}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch: `rows_per_stream` rows of every owned stream, streams in order."""
        rows = [row for rows in self.rows().values() for row in rows]
        return assemble(rows, self._config.packing, self._corpus.vocabulary)

    def get_state(self) -> dict[str, Any]:
        """JSON: the state of each owned stream under its number, and what every source is under "sources"."""
        streams = {str(number): stream.get_state() for number, stream in self._streams.items()}
        return streams | {"sources": self._corpus.identities()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that holds at least the owned streams, whoever owned them before.

        Raises:
            UserError: the state is of other sources, or of another number of streams.
        """
        stored = state.get("sources", {})
        if self._config.remix:
            stored = {name: source for name, source in stored.items() if name in self._corpus.sources}
        self._corpus.check_identities(stored)
        for number, stream in self._streams.items():
            if str(number) not in state:
                raise other_streams(state, self._config)
            stream.set_state(state[str(number)])

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> samples skipped by the owned streams since the run began."""
        return dict(sum((stream.rejected for stream in self._streams.values()), collections.Counter()))

    @property
    def first_rejected(self) -> dict[str, str]:
        """Reason -> what was wrong with the first such sample of a stream."""
        return {reason: told for stream in self._streams.values() for reason, told in stream.first_rejected.items()}

    def rows(self) -> dict[int, list[list[Sample]]]:
        """The next rows of every owned stream, by its number."""
        return {
            number: [next(stream) for _ in range(self._config.rows_per_stream)]
            for number, stream in self._streams.items()
        }

    def close(self) -> None:
        """Nothing to end."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a worker gives for a batch.

    Attributes:
        rows: of each of its streams, by number.
        state: of each of its streams behind them, and of the sources.
        rejected, first_rejected: as of `HostBatches`.
    """

    rows: dict[int, list[list[Sample]]]
    state: dict[str, Any]
    rejected: dict[str, int]
    first_rejected: dict[str, str]


class PartDataset(grain.IterDataset):
    """Endless parts of batches, of some streams, from a state on; its corpus is opened where it is read."""

    def __init__(self, reopen: Callable[[], Corpus], config: DataConfig, numbers: Sequence[int], state: dict[str, Any]):
        """Args: makes the corpus, importable; the run's config; the streams, and their state to begin with."""
        super().__init__()
        self._arguments = reopen, config, numbers, state

    def __iter__(self) -> "PartIterator":
        return PartIterator(*self._arguments)


class PartIterator(grain.DatasetIterator):
    """Iterator of a `PartDataset`; states go with the parts, since parts are prepared ahead."""

    def __init__(self, reopen: Callable[[], Corpus], config: DataConfig, numbers: Sequence[int], state: dict[str, Any]):
        super().__init__()
        self._arguments = reopen, config, numbers, state
        self._host: HostBatches | None = None

    def __next__(self) -> Part:
        if self._host is None:
            reopen, config, numbers, state = self._arguments
            self._host = HostBatches(reopen(), config, numbers)
            self._host.set_state(state)
        host = self._host
        return Part(host.rows(), host.get_state(), host.rejected, host.first_rejected)

    def get_state(self) -> dict[str, Any]:
        """Nothing: grain asks for it with each part."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Never called; a `PartDataset` begins with its state."""
        raise NotImplementedError


class WorkerBatches:
    """What `HostBatches` gives, bit for bit and with the same states, read by `config.workers` processes.

    Each has some of the streams, which know nothing of each other, so their number is no part of a run.
    """

    def __init__(self, corpus: Corpus, config: DataConfig, owned: Sequence[int], reopen: Callable[[], Corpus]):
        """Args: what the run shares; its config; the streams owned here; makes the corpus anew in a worker."""
        self._corpus, self._config, self._reopen = corpus, config, reopen
        numbers = sorted(owned)
        self._shares = [numbers[worker :: config.workers] for worker in range(min(config.workers, len(numbers)))]
        self._here = HostBatches(corpus, config, numbers)
        self._state = self._here.get_state()
        self._parts: list[Part] = []
        self._feeds: list[Any] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: what a worker ran into, or that one was killed.
        """
        if not self._feeds:
            if not flags.FLAGS.is_parsed():  # grain reads its own ones there, which only commands have parsed
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=self._config.prefetch)
            sets = [PartDataset(self._reopen, self._config, share, self._state) for share in self._shares]
            self._feeds = [iter(part.mp_prefetch(options, _begin)) for part in sets]
        try:
            # Beside each other: a worker starts when it is first asked.
            with concurrent.futures.ThreadPoolExecutor(len(self._feeds)) as pool:
                self._parts = list(pool.map(next, self._feeds))
        except RuntimeError as error:
            raise UserError(
                f"a worker process that reads data ended ({error}); the machine may be short of memory: use fewer "
                "config.data.workers"
            ) from error
        for part in self._parts:
            self._state = self._state | part.state
        rows = {number: rows for part in self._parts for number, rows in part.rows.items()}
        flat = [row for number in sorted(rows) for row in rows[number]]
        return assemble(flat, self._config.packing, self._corpus.vocabulary)

    def get_state(self) -> dict[str, Any]:
        """As of `HostBatches`."""
        return dict(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """As of `HostBatches`; the workers begin anew.

        Raises:
            UserError: as there.
        """
        self.close()
        self._here.set_state(state)
        self._state, self._parts = self._here.get_state(), []

    @property
    def rejected(self) -> dict[str, int]:
        """As of `HostBatches`."""
        if not self._parts:
            return self._here.rejected
        return dict(sum((collections.Counter(part.rejected) for part in self._parts), collections.Counter()))

    @property
    def first_rejected(self) -> dict[str, str]:
        """As of `HostBatches`."""
        if not self._parts:
            return self._here.first_rejected
        return {reason: told for part in self._parts for reason, told in part.first_rejected.items()}

    def close(self) -> None:
        """Ends the workers; the next batch starts others."""
        for feed in self._feeds:
            feed.close()
        self._feeds = []


def other_streams(state: dict[str, Any], config: DataConfig) -> UserError:
    """What is said of a state with another number of streams."""
    return UserError(
        f"the saved data state has {len(state.keys() - {'sources'})} streams, this run has {config.streams}; a run "
        "keeps the number of streams it began with"
    )


def _begin(worker: int, workers: int) -> None:
    """In a worker, before it reads: no device, and its end is the parent's business."""
    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    follow_parent()
