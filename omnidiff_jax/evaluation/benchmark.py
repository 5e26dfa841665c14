"""A public benchmark as data: its questions, the protocols it is asked and scored by, and a row of a table of them."""

import collections
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

from omnidiff_jax.answering.media import to_audio, to_image
from omnidiff_jax.answering.queries import Request
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.records import Waveform


class Medium(Interface):
    """A picture or a recording that is read when it is wanted, so that a benchmark's media are never all in memory."""

    def read(self) -> bytes:
        """The file's content; raises UserError where it cannot be read."""

    def missing(self) -> str:
        """What is not there, "" where all is; nothing is decoded."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        split: the part of the benchmark that it is counted in: a task of MME, a file of POPE.
        name: within its split.
        task: that the model is asked.
        text: the request, as the protocol words it.
        image, audio: or None.
        truth: what scores and exports read: "answer", "options", "question", "file", …; JSON.
        cluster: items of one are drawn together in intervals; "" = every one for itself.
        reference: the real picture or recording of what is to be generated: what a judge's ceiling is measured on.
    """

    split: str
    name: str
    task: str
    text: str = ""
    image: Medium | None = None
    audio: Medium | None = None
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cluster: str = ""
    reference: Medium | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Split and name, which no other item has."""
        return self.split, self.name

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.split}, {self.name}"

    def media(self) -> tuple[Medium, ...]:
        """What must be there before it can be asked and judged."""
        return tuple(medium for medium in (self.image, self.audio, self.reference) if medium is not None)

    def request(self, exam: str) -> Request:
        """The question with its media read; noise is keyed by the exam and the item, not by where it stands.

        Raises:
            UserError: a medium that cannot be read.
        """
        return Request(
            self.text,
            None if self.image is None else to_image(self.image.read()),
            None if self.audio is None else heard(self.audio),
            request_id=zlib.crc32("\0".join((exam, *self.key)).encode()),
        )


def heard(medium: Medium) -> Waveform:
    """A recording decoded; raises UserError where it cannot be."""
    return to_audio(medium.read())


@dataclasses.dataclass(frozen=True)
class Answered:
    """An item with what was said to it.

    Attributes:
        item: the question.
        answer: "text", "speech" and "picture" (files beside, "" = none), "seconds", "finish"; JSON.
        judged: what judges say of it: "heard", "clip_t", "clip_i"; JSON.
    """

    item: Item
    answer: Mapping[str, Any]
    judged: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was said, in text."""
        return str(self.answer.get("text", ""))

    @property
    def heard(self) -> str:
        """What a judge heard in the speech of the answer; without speech nothing."""
        return str(self.judged.get("heard", "")) if self.answer.get("speech") else ""

    def said(self, protocol: "Protocol") -> str:
        """What the protocol scores: the text, or what was heard where a judge reads speech."""
        return self.heard if protocol.judge == "speech" else self.text


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to ask and to score a benchmark.

    Attributes:
        note: where it comes from, and how sure that is.
        prompt: the request, `{question}` and `{options}` in it.
        reads: the rule that reads answers: a word of `YesNo` or `Letters`; "" where none is needed.
        normaliser: of transcripts, a word of `Normaliser`.
        decoding: a set of `tasks.decodings.DECODINGS`, "" = as the model is decoded anyway.
        draws: options are ranked by likelihood bounds from so many noise levels; 0 = an answer is generated.
        judge: kind that reads answers in speech ("speech") or pictures ("picture"), "" = none.
        settings: of this benchmark alone.
    """

    note: str
    prompt: str = "{question}"
    reads: str = ""
    normaliser: str = "plain"
    decoding: str = "released"
    draws: int = 0
    judge: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Published:
    """A number that somebody published.

    Attributes:
        model: whose.
        metric: of ours that it stands beside.
        value: in our unit.
        source: where it is said.
    """

    model: str
    metric: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the answers to a benchmark amount to.

    Attributes:
        numbers: by metric; the first is the headline.
        unparsed: answers that the protocol's rule could not read.
        notes: counts to be shown beside: "without speech": 3.
    """

    numbers: Mapping[str, Ratios]
    unparsed: int = 0
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `omnidiff evaluate --exam=NAME --data=DIR` asks: a row of the table that is handed in from above.

    Attributes:
        summary: one line.
        layouts: what `--data` may be.
        source: where the data are to be had, and under which licence.
        counts: split -> items of the whole benchmark; several where more than one edition is in use.
        protocols: by name, the first is the default.
        read: (folder, protocol) -> items in the official order; functions of a module.
        score: (answered items, protocol) -> numbers.
        exports: (answered items, protocol) -> file -> content, in the official forms.
        higher_is_better: direction of the headline.
        published: of the full benchmark.
        total: items of the whole benchmark where those of its splits are not known; 0 = any number is whole.
    """

    summary: str
    layouts: str
    source: str
    counts: Mapping[str, tuple[int, ...]]
    protocols: Mapping[str, Protocol]
    read: Callable[[str, Protocol], Iterable[Item]]
    score: Callable[[Sequence[Answered], Protocol], Scores]
    exports: Callable[[Sequence[Answered], Protocol], Mapping[str, str | bytes]]
    higher_is_better: bool = True
    published: tuple[Published, ...] = ()
    total: int = 0


@dataclasses.dataclass(frozen=True)
class Census:
    """What is there of a benchmark.

    Attributes:
        counts: split -> items.
        missing: media that are not there, the first of them by name.
        absent: how many there are in all.
        wrong: splits whose number is none of the known ones: "scene has 398 items, the whole benchmark 400".
        digest: sha256 of all questions and answers, in order.
    """

    counts: Mapping[str, int]
    missing: tuple[str, ...]
    absent: int
    wrong: tuple[str, ...]
    digest: str

    @property
    def whole(self) -> bool:
        """Whether every item of the benchmark is there, with its media."""
        return not self.wrong and not self.absent


_NAMED = 5


def census(benchmark: Benchmark, items: Sequence[Item]) -> Census:
    """Counts and checks what was read, without decoding a medium.

    Raises:
        UserError: two items of one split with one name.
    """
    digest, absent = hashlib.sha256(), 0
    missing: list[str] = []
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item.key in seen:
            raise UserError(f"{item.where}: there twice; a benchmark's items have names of their own")
        seen.add(item.key)
        told = [*item.key, item.task, item.text, dict(item.truth)]
        digest.update(json.dumps(told, sort_keys=True, ensure_ascii=True).encode() + b"\n")
        for medium in item.media():
            if gone := medium.missing():
                absent += 1
                missing += [gone] if len(missing) < _NAMED else []
    counts = collections.Counter(item.split for item in items)
    wrong = [
        f"{split} has {counts.get(split, 0)} items, the whole benchmark {' or '.join(map(str, known))}"
        for split, known in benchmark.counts.items()
        if counts.get(split, 0) not in known
    ]
    if benchmark.counts:
        wrong += [f"{split} is no part of the benchmark" for split in counts if split not in benchmark.counts]
    elif benchmark.total and benchmark.total != len(items):
        wrong.append(f"there are {len(items)} items, the whole benchmark has {benchmark.total}")
    return Census(dict(counts), tuple(missing), absent, tuple(wrong), digest.hexdigest())


def limited(items: Sequence[Item], limit: int) -> list[Item]:
    """The first `limit` items of each split; 0 = all."""
    if not limit:
        return list(items)
    taken: collections.Counter[str] = collections.Counter()
    kept = []
    for item in items:
        taken[item.split] += 1
        kept += [item] if taken[item.split] <= limit else []
    return kept
