"""Virtual streams: the order of data does not know the number of hosts.

A run fixes V streams. Stream v walks over every source with its own stride, interleaves them by the stage's weights,
packs rows, and yields B / V rows of each global batch: rows v * B / V onwards. A host owns whole streams; a checkpoint
holds the state of all. So one host, four hosts and a resume on two give the same batches.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from omnidiff_jax.data.assemble import Sample, tail_pads
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.mixture import Interleave, Stage, group_names, stage_at
from omnidiff_jax.data.packing import Packer
from omnidiff_jax.data.sources import Source
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import EncodedExample, RejectedRecord
from omnidiff_jax.speech_frames import seconds_of
from omnidiff_jax.vocabulary import Vocabulary

_TOLD = 300
# So often a stream goes through a source of which it can use nothing: it sees other samples of it each time.
_IN_VAIN = 16
# (index of the source, how many samples this stream had drawn from it before)
Draw = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What all streams of a run share.

    Attributes:
        sources: name -> encoded samples; the order of the names is part of the run.
        stages: the curriculum; their weights name sources, or tasks.
        vocabulary: ids of padding and speech slots.
    """

    sources: Mapping[str, Source[EncodedExample]]
    stages: Sequence[Stage]
    vocabulary: Vocabulary

    def __post_init__(self):
        if not self.stages:
            raise UserError("the curriculum has no stage; give it at least one")
        _ = self.shares

    @classmethod
    def opened(
        cls,
        sources: Callable[[], Mapping[str, Source[EncodedExample]]],
        stages: Sequence[Stage],
        vocabulary: Vocabulary,
    ) -> "Corpus":
        """The corpus of sources that are opened where it is called, as in a worker process."""
        return cls(sources(), stages, vocabulary)

    @functools.cached_property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Of each stage, the weight of each source."""
        tasks = {name: source.task for name, source in self.sources.items()}
        sizes = {name: len(source) for name, source in self.sources.items()}
        return tuple(tuple(stage.shares(tasks, sizes).values()) for stage in self.stages)

    @functools.cached_property
    def groups(self) -> Mapping[tuple[str, str], int]:
        """(source, task) -> its number in `Batch.group_ids`."""
        pairs = group_names({name: source.task for name, source in self.sources.items()})
        return {pair: number for number, pair in enumerate(pairs)}

    def identities(self) -> dict[str, dict[str, Any]]:
        """What a resume must find again, by source; JSON."""
        return {
            name: {"examples": len(source), "fingerprint": source.fingerprint} for name, source in self.sources.items()
        }

    def check_identities(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuses to go on with other samples than those of a checkpoint; new sources beside them are welcome.

        Args:
            stored: what `identities` said then.

        Raises:
            UserError: naming the first source that is missing or not what it was.
        """
        here = self.identities()
        for name, old in stored.items():
            new = here.get(name)
            if new is None:
                raise UserError(
                    f"the checkpoint was trained on source {name!r} ({old['examples']} samples), which this run does "
                    "not have; put it back, or use another --workdir"
                )
            known = bool(old["fingerprint"] and new["fingerprint"])
            if old["examples"] != new["examples"] or (known and old["fingerprint"] != new["fingerprint"]):
                change = (
                    f"{old['examples']} samples then, {new['examples']} now"
                    if old["examples"] != new["examples"]
                    else f"the same {new['examples']} samples in number, but of other content"
                )
                raise UserError(
                    f"source {name!r} is not what the checkpoint was trained on ({change}); put the data of before "
                    "back, give new samples a source of their own name, or use another --workdir"
                )


class StreamDataset(grain.IterDataset):
    """Endless packed rows (lists of `Sample`) of one virtual stream."""

    def __init__(self, corpus: Corpus, config: DataConfig, number: int):
        """Args: what the run shares, its config, and the stream's number in 0 .. V - 1."""
        super().__init__()
        self._corpus, self._config, self._number = corpus, config, number

    def __iter__(self) -> "Stream":
        return Stream(self._corpus, self._config, self._number)


class Stream(grain.DatasetIterator):
    """Iterator of one virtual stream; `get_state` is JSON and restores exactly, half-filled rows included."""

    def __init__(self, corpus: Corpus, config: DataConfig, number: int):
        super().__init__()
        self._corpus, self._config, self._number = corpus, config, number
        self._names = list(corpus.sources)
        self._draws = [0] * len(self._names)
        self._rows = 0
        self._stage = 0
        self._interleave = self._start_stage(0)
        self._packer: Packer[tuple[Draw, Sample]] = Packer(config.packing)
        self._ready: collections.deque[list[tuple[Draw, Sample]]] = collections.deque()
        self.rejected: collections.Counter[str] = collections.Counter()
        self.first_rejected: dict[str, str] = {}
        self._in_vain = [0] * len(self._names)

    def __next__(self) -> list[Sample]:
        stage = stage_at(self._corpus.stages, self._rows // self._config.rows_per_stream)
        if stage != self._stage:
            self._stage = stage
            self._interleave = self._start_stage(stage)
        while not self._ready:
            self._pull()
        self._rows += 1
        return [sample for _, sample in self._ready.popleft()]

    def get_state(self) -> dict[str, Any]:
        """Counters, and the draws in open and ready rows; the samples themselves are read again on restore."""
        return {
            "rows": self._rows,
            "stage": self._stage,
            "shares": dict(zip(self._names, self._corpus.shares[self._stage], strict=True)),
            "taken": dict(zip(self._names, self._interleave.taken, strict=True)),
            "draws": dict(zip(self._names, self._draws, strict=True)),
            "open": [[self._named(draw) for draw, _ in row.items] for row in self._packer.open],
            "waited": [row.waited for row in self._packer.open],
            "ready": [[self._named(draw) for draw, _ in row] for row in self._ready],
            "rejected": dict(self.rejected),
            "first_rejected": dict(self.first_rejected),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called; sources that are new since then begin with their first sample.

        Of sources that are not there any more (`DataConfig.remix`), samples that waited in half-filled rows are left
        out; all others stay where they were.

        Raises:
            UserError: the state lacks a source's name, or a sample in it can no longer be read or fits no more.
        """
        named = _with_names(state, self._names)
        self._rows, self._stage = named["rows"], named["stage"]
        self._interleave = self._start_stage(self._stage)
        shares, taken = dict(zip(self._names, self._corpus.shares[self._stage], strict=True)), named["taken"]
        weighed = {name: share for name, share in named.get("shares", {}).items() if share}
        same = not weighed or weighed == {name: share for name, share in shares.items() if share}
        # A source that is new or weighs more would be drawn alone until it had caught up, so all shares are counted
        # from here on.
        if same and all(name in taken for name, share in shares.items() if share):
            self._interleave.taken = [taken.get(name, 0) for name in self._names]
        self._draws = [named["draws"].get(name, 0) for name in self._names]
        self.rejected = collections.Counter(named["rejected"])
        self.first_rejected = dict(named.get("first_rejected", {}))
        # States of before rows had patience do not say how long theirs waited.
        waited = named.get("waited", [0] * len(named["open"]))
        rows = [(row, since) for row, since in zip(map(self._kept, named["open"]), waited, strict=True) if row]
        self._packer.resume([self._row(row) for row, _ in rows], [since for _, since in rows])
        ready = [row for row in map(self._kept, named["ready"]) if row]
        self._ready = collections.deque([[item for item, _, _ in self._row(row)] for row in ready])

    def _start_stage(self, stage: int) -> Interleave:
        return Interleave(self._corpus.shares[stage], self._number)

    def _named(self, draw: Draw) -> tuple[str, int]:
        return self._names[draw[0]], draw[1]

    def _pull(self) -> None:
        """Draws samples until one is usable and gives it to the packer."""
        while True:
            source = self._interleave.choose()
            draw = (source, self._draws[source])
            self._draws[source] += 1
            try:
                sample = self._read(draw)
            except RejectedRecord as error:
                self._interleave.give_back(source)
                self._reject(source, error)
                continue
            self._in_vain[source] = 0
            self._ready.extend(self._packer.add((draw, sample), sample.tokens, sample.frames))
            return

    def _reject(self, source: int, error: RejectedRecord) -> None:
        """Counts a sample that cannot be used.

        Raises:
            UserError: the source has given too many of them.
        """
        name = self._names[source]
        reason = f"{name}: {error.reason}"
        self.rejected[reason] += 1
        self.first_rejected.setdefault(reason, str(error)[:_TOLD])
        mine = {reason: count for reason, count in self.rejected.items() if reason.startswith(f"{name}: ")}
        self._in_vain[source] += 1
        if self._in_vain[source] > _IN_VAIN * (len(self._corpus.sources[name]) + 1):
            raise UserError(f"no sample of source {name!r} can be used: {self._told(mine)}")
        count, drawn = sum(mine.values()), self._draws[source]
        if self._config.rejects.over(count, drawn, self._config.streams):
            limits = self._config.rejects
            raise UserError(
                f"{count} of {drawn} samples of source {name!r} that stream {self._number} drew cannot be used: "
                f"{self._told(mine)}; mend them (`omnidiff data check` counts all), or raise "
                f"config.data.rejects.share ({limits.share:g}) and config.data.rejects.most ({limits.most})"
            )

    def _told(self, rejected: Mapping[str, int]) -> str:
        """Reasons with their counts and the first sample of each, the most frequent ones."""
        most = collections.Counter(rejected).most_common(3)
        return "; ".join(f"{count} × {self.first_rejected.get(reason, reason)}" for reason, count in most)

    def _kept(self, draws: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
        return [draw for draw in draws if draw[0] in self._names] if self._config.remix else draws

    def _row(self, draws: Sequence[tuple[str, int]]) -> list[tuple[tuple[Draw, Sample], int, int]]:
        """The samples of a row of a saved state, with their sizes."""
        row = [self._sized(draw) for draw in draws]
        tokens, frames = sum(size for _, size, _ in row), sum(size for _, _, size in row)
        if not self._packer.fits(tokens, frames):
            names = ", ".join(sorted({repr(name) for name, _ in draws}))
            packing = self._config.packing
            raise UserError(
                f"the saved data state has a row that fits no longer: its samples of {names} take {tokens} tokens and "
                f"{frames} speech frames, a row has {packing.length} and {packing.frames}; their data changed, or an "
                "earlier version saved it, which padded JSONL lines by their path: go on with that version, or start "
                "another --workdir with config.init.folder set to this one"
            )
        return row

    def _sized(self, draw: tuple[str, int]) -> tuple[tuple[Draw, Sample], int, int]:
        name, count = draw
        source = self._names.index(name)
        try:
            sample = self._read((source, count))
        except RejectedRecord as error:
            raise UserError(f"a sample of {name!r} in the saved data state is unusable now ({error})") from error
        return ((source, count), sample), sample.tokens, sample.frames

    def _read(self, draw: Draw) -> Sample:
        """The sample of a draw, where the source's walk says."""
        config, name = self._config, self._names[draw[0]]
        source = self._corpus.sources[name]
        index, epoch = source.place(draw[1], self._number, config.streams, config.seed, name)
        example = source[index]
        counts = example.frame_counts
        frames = int(config.packing.speech.sizes(counts).sum())
        if np.count_nonzero(example.tokens == self._corpus.vocabulary.context_audio) != frames:
            raise RejectedRecord("speech slots do not match the frames", f"sample {example.sample_id}")
        pads = tail_pads(example, epoch, config.seed, config.max_tail_pads, self._corpus.vocabulary.pad)
        group = self._corpus.groups.get((name, source.task or example.task))
        if group is None:
            raise RejectedRecord("unknown task", f"sample {example.sample_id} is of {example.task!r}")
        sample = Sample(example, epoch, pads, len(example.tokens) + pads, frames, group)
        if sample.tokens > config.packing.length:
            heard = seconds_of(counts, sample.tokens - config.packing.length)
            raise RejectedRecord("longer than a row", f"sample {example.sample_id} has {sample.tokens} tokens{heard}")
        if frames > config.packing.frames:
            heard = seconds_of(counts, frames - config.packing.frames)
            raise RejectedRecord("more speech than a row's frames", f"sample {example.sample_id} has {frames}{heard}")
        return sample


def _with_names(state: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """A stream's state with its sources by name; states of before sources had names have them by position.

    Raises:
        UserError: such a state, of another number of sources.
    """
    if isinstance(state["draws"], Mapping):
        return state
    if len(state["draws"]) != len(names):
        raise UserError(
            f"the saved data state has {len(state['draws'])} sources without names, this run has {len(names)}; resume "
            "with the same data sets"
        )
    rows = {key: [[(names[source], count) for source, count in row] for row in state[key]] for key in ("open", "ready")}
    by_name = {key: dict(zip(names, state[key], strict=True)) for key in ("taken", "draws")}
    return {**state, **by_name, **rows}
