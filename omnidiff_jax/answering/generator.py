"""One path from queries to answers in their media: `omnidiff sample`, exams, chat and servers all decode here."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from omnidiff_jax.answering.engine import Engine, Work, room, suits
from omnidiff_jax.answering.lanes import Lane, lane_lengths
from omnidiff_jax.answering.queries import Query, Request, Response, task_query
from omnidiff_jax.answering.unconditional import unconditional_prompts
from omnidiff_jax.codecs.encode import code_hole, encode_prompts, fit_image
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.records import EncodedExample, Record, RejectedRecord, Waveform
from omnidiff_jax.sampling.canvas import Answer, Canvas, Prompt, blank, bucket, build_canvas, known
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.guidance import stack_canvases, unconditional_canvas
from omnidiff_jax.sampling.likelihood import likelihood_bound
from omnidiff_jax.sampling.loop import compiled, sample
from omnidiff_jax.sampling.results import SampleResult, film, finish_reasons
from omnidiff_jax.sampling.stopping import Stopping
from omnidiff_jax.sharding.spread import Spread
from omnidiff_jax.tasks.answers import AnswerForms, Parsed
from omnidiff_jax.tasks.registry import Decoding, Task

SPEECH_TOKENS_PER_SECOND = 12.5
DRAWN = ("image", "hole")
# Positions of each slot whose logits a lane computes together, on average: more are computed in turn.
_TOGETHER = 4


class Generator:
    """Decodes batches of queries with one model.

    Batches are filled up to `rows` and lengths rounded up, so that few programs are compiled; an answer does not depend
    on the other queries of its batch.

    Attributes:
        codecs: media to codes and back.
        forms: how answers lie on a canvas.
        rows: queries decoded together.
        limit: longest prompt + answer, or None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codecs: Codecs,
        decoding: Mapping[str, Decoding],
        *,
        rows: int = 64,
        multiple: int = 32,
        limit: int | None = None,
        seed: int = 0,
        spread: Spread | None = None,
    ):
        """Opens a generator.

        Args:
            denoiser: the model.
            codecs: media to codes and back.
            decoding: settings by task name; tasks left out use their defaults.
            rows: queries decoded together.
            multiple: canvas lengths are rounded up to this.
            limit: longest prompt + answer.
            seed: of the sampling noise of a task's requests.
            spread: lays batches over the processes of a mesh, all of which must then ask alike.
        """
        self.codecs = codecs
        self._denoiser, self._decoding = denoiser, decoding
        self.rows, self._multiple, self.limit = spread.even(rows) if spread else rows, multiple, limit
        self._seed, self._spread = seed, spread
        self.forms = AnswerForms(codecs.layout, codecs.image_grid[0] * codecs.image_grid[1])

    def decoding(self, task: Task) -> Decoding:
        """Settings that `task` is decoded with."""
        return self._decoding.get(task.name, task.decoding)

    def decoded_by(self, decoding: Mapping[str, Decoding]) -> "Generator":
        """The same model under other settings of some tasks."""
        other = copy.copy(self)
        other._decoding = {**self._decoding, **decoding}
        return other

    def __call__(
        self, task: Task, requests: Sequence[Request], *, strips: bool = False, decoding: Decoding | None = None
    ) -> list[Response]:
        """Answers requests of one task, in order.

        Args:
            decoding: in place of the task's settings.
            strips: also return the answer's tokens after each step.

        Raises:
            UserError: a request lacks what the task needs, or does not fit the canvas.
        """
        chosen = decoding or self.decoding(task)
        queries = [task_query(task, request, chosen, self._seed) for request in requests]
        if len(queries) > 1:
            queries = [dataclasses.replace(query, number=i) for i, query in enumerate(queries, start=1)]
        return self.decode(queries, strips=strips)

    def check(self, task: Task, request: Request) -> None:
        """Refuses a request that `__call__` would refuse, without decoding.

        Raises:
            UserError: as `__call__`.
        """
        query = task_query(task, request, self.decoding(task), self._seed)
        notice(query.check_taught(self.codecs.layout.text))
        self._canvas(*self._written([query]), _ids([query]), self._multiple, None, _names([query]))

    def decode(self, queries: Sequence[Query], *, strips: bool = False) -> list[Response]:
        """Answers any queries, in order; those that are decoded alike share a batch.

        Raises:
            UserError: a medium that cannot be used, characters the model was never taught and no others, or a query
                that does not fit the canvas.
        """
        alike: dict[Any, list[int]] = {}
        for number, query in enumerate(queries):
            notice(query.check_taught(self.codecs.layout.text))
            alike.setdefault((query.answer, query.decoding), []).append(number)
        responses: dict[int, Response] = {}
        for numbers in alike.values():
            # A batch is as long, and takes as many steps, as its longest answer.
            numbers.sort(key=lambda number: self._units(queries[number]))
            group = [queries[number] for number in numbers]
            if len(group) > self.rows and suits(group[0].decoding.sampler):
                responses |= dict(zip(numbers, self._stream(group, strips), strict=True))
                continue
            for start in range(0, len(numbers), self.rows):
                batch = numbers[start : start + self.rows]
                answers = self._answer([queries[number] for number in batch], strips)
                responses |= dict(zip(batch, answers, strict=True))
        return [responses[number] for number in range(len(queries))]

    def film(self, queries: Sequence[Query]) -> list[Response]:
        """Answers queries, in order, with their strips: in the lanes that a server has for them, so that each is what
        it shows of the same query, to the last bit.

        Raises:
            UserError: as `decode`.
        """
        if self._spread is not None:
            return self.decode(queries, strips=True)
        responses: dict[int, Response] = {}
        lanes: dict[Lane, list[tuple[int, Work]]] = {}
        for number, query in enumerate(queries):
            if suits(query.decoding.sampler):
                notice(query.check_taught(self.codecs.layout.text))
                work = self.write(query)
                lanes.setdefault(self.lanes(work)[0], []).append((number, work))
            else:
                (responses[number],) = self.decode([query], strips=True)
        for lane, works in lanes.items():
            engine = self.open(lane)
            submitted = {engine.submit(work): (number, work) for number, work in works}
            for done in engine.run():
                number, work = submitted[done.number]
                responses[number] = self.read(queries[number], work, done.result, strips=True)
        return [responses[number] for number in range(len(queries))]

    def bounds(
        self, task: Task, requests: Sequence[Request], answers: Sequence[Sequence[str]], draws: int
    ) -> list[np.ndarray]:
        """How unlikely given answers in text are: bounds of `sampling.likelihood` over their words and the turn's end.

        Args:
            task: with an answer in text.
            requests: of the task.
            answers: some to each request.
            draws: noise levels that the estimate is made of.

        Returns:
            for each request float32 [k, 2]: the bound on -log p in nats, and the positions it is a sum over.

        Raises:
            UserError: as `__call__`.
        """
        layout, decoding = self.codecs.layout, self.decoding(task)
        queries = [task_query(task, request, decoding, self._seed) for request in requests]
        asked = [(query, text) for query, texts in zip(queries, answers, strict=True) for text in texts]
        mask, end = layout.vocabulary.mask, known(layout.encode_text("\n"))
        found: list[np.ndarray] = []
        for start in range(0, len(asked), self.rows):
            part = asked[start : start + self.rows]
            prompts = [_prompt(example) for example in self._encode([query for query, _ in part])]
            said = [np.array([*layout.encode_text(text), layout.vocabulary.im_end], np.int32) for _, text in part]
            ids, names = _ids([query for query, _ in part]), _names([query for query, _ in part])
            blanks = [blank(len(ids_of), mask) + end for ids_of in said]
            canvas = self._canvas(prompts, blanks, ids, self._multiple, self.rows, names)
            tokens = np.array(canvas.inputs.tokens)
            for row, prompt, ids_of in zip(tokens, prompts, said, strict=False):
                row[len(prompt.tokens) : len(prompt.tokens) + len(ids_of)] = ids_of
            nats = likelihood_bound(self._denoiser, canvas, tokens, draws, self._seed, self._spread)
            found += [np.array([bound, len(ids_of)], np.float32) for bound, ids_of in zip(nats, said, strict=False)]
        ends = np.cumsum([len(texts) for texts in answers])
        return [np.stack(found[stop - len(texts) : stop]) for stop, texts in zip(ends, answers, strict=True)]

    def _answer(self, queries: Sequence[Query], strips: bool) -> list[Response]:
        """One batch; all of one kind of answer and decoding."""
        prompts, answers = self._written(queries)
        rows = self.rows if len(queries) > 1 or self._spread else None
        canvas = self._canvas(prompts, answers, _ids(queries), self._multiple, rows, _names(queries))
        others = unconditional_prompts(self.codecs.layout, prompts, queries)
        empty = self._unconditional(canvas, others, self._multiple) if others else None
        seeds = [query.seed for query in queries]
        result = sample(self._denoiser, canvas, self._sampler(queries[0]), seeds, empty, spread=self._spread)
        return self._read(canvas, result, answers, queries, strips)

    def _stream(self, queries: Sequence[Query], strips: bool) -> list[Response]:
        """More than one batch of one kind of answer and decoding: through an engine."""
        parts = [queries[start : start + self.rows] for start in range(0, len(queries), self.rows)]
        written = [self._written(part) for part in parts]
        works = []
        for part, pairs in zip(parts, written, strict=True):
            others: Sequence[Prompt | None] = unconditional_prompts(self.codecs.layout, pairs[0], part) or [None] * len(
                part
            )
            works += [
                Work(prompt, answer, self._sampler(query), query.seed, query.request_id, other)
                for query, prompt, answer, other in zip(part, *pairs, others, strict=True)
            ]
        both = [(prompt, work) for work in works for prompt in (work.prompt, work.unconditional) if prompt is not None]
        length = bucket(max(len(prompt.tokens) + len(work.answer) for prompt, work in both), self._multiple)
        # Room for speech in every canvas or in none, whoever joins.
        frames = length if any(len(prompt.frame_counts) for prompt, _ in both) else 0
        canvases = [
            self._canvas(*pairs, _ids(part), length, self.rows, _names(part), frames)
            for part, pairs in zip(parts, written, strict=True)
        ]

        lay_out = functools.partial(self._lay_out, length, frames)
        laid = [lay_out(works[start : start + self.rows], self.rows) for start in range(0, len(works), self.rows)]
        engine = Engine(self._denoiser, lay_out, *room(works, laid), slots=self.rows)
        # The longest first, so that the last ones do not finish alone.
        numbers = {engine.submit(works[i]): i for i in reversed(range(len(works)))}
        results = {numbers[done.number]: done.result for done in engine.run()}
        responses = []
        for number, (part, canvas, (_, answers)) in enumerate(zip(parts, canvases, written, strict=True)):
            rows = [results[number * self.rows + i] for i in range(len(part))]
            rows += rows[-1:] * (self.rows - len(part))  # the canvas has as many; nobody reads them
            result = jax.tree.map(lambda *xs: np.stack(xs), *rows)
            responses += self._read(canvas, result, answers, part, strips)
        return responses

    def _lay_out(self, length: int, frames: int, works: Sequence[Work], rows: int) -> Canvas:
        """Works on canvases of `length` with room for `frames`, as an engine asks for them."""
        prompts, answers = [work.prompt for work in works], [work.answer for work in works]
        ids = [work.request_id for work in works]
        canvas = self._canvas(prompts, answers, ids, length, rows, frames=frames)
        others = [work.unconditional for work in works if work.unconditional is not None]
        return stack_canvases(canvas, self._unconditional(canvas, others, length)) if others else canvas

    def write(self, query: Query) -> Work:
        """A query as an engine takes it.

        Raises:
            UserError: as `decode`.
        """
        prompts, answers = self._written([query])
        self._canvas(prompts, answers, _ids([query]), self._multiple, None, _names([query]))
        others: Sequence[Prompt | None] = unconditional_prompts(self.codecs.layout, prompts, [query]) or [None]
        return Work(prompts[0], answers[0], self._sampler(query), query.seed, query.request_id, others[0])

    def lanes(self, work: Work) -> list[Lane]:
        """The lanes that have room for a work, the shortest first: it goes in that one."""
        prompts = [prompt for prompt in (work.prompt, work.unconditional) if prompt is not None]
        needed = max(len(prompt.tokens) for prompt in prompts) + len(work.answer)
        heard = any(len(prompt.frame_counts) for prompt in prompts)
        masked = work.answer.tokens == self.codecs.layout.vocabulary.mask
        span = work.sampler.candidates.span(self.forms.sets.table, work.answer.groups[masked])
        lanes = []
        for length in lane_lengths(max(self.limit or 0, needed), self._multiple):
            code = compiled(work.sampler, self.rows * length, self.rows * len(prompts) * length, span)
            lanes.append(Lane(code.steady(_TOGETHER * self.rows), length, length if heard else 0))
        return [lane for lane in lanes if lane.length >= needed]

    def open(self, lane: Lane) -> Engine:
        """An engine for the works of a lane."""
        lay_out = functools.partial(self._lay_out, lane.length, lane.frames)
        return Engine(self._denoiser, lay_out, lane.code, lane.columns, slots=self.rows)

    def read(self, query: Query, work: Work, result: SampleResult, *, strips: bool = False) -> Response:
        """What an engine answered a query that was written as `work`, in its media."""
        frames = len(result.tokens) if len(work.prompt.frame_counts) else 0
        canvas = self._canvas([work.prompt], [work.answer], _ids([query]), len(result.tokens), 1, frames=frames)
        whole = jax.tree.map(lambda x: x[None], result)
        return self._read(canvas, whole, [work.answer], [query], strips)[0]

    def _sampler(self, query: Query) -> SamplerConfig:
        decoding = query.decoding
        if decoding.stop == "never" or query.answer in DRAWN:
            return decoding.sampler
        return dataclasses.replace(decoding.sampler, stopping=Stopping(self.codecs.layout.vocabulary.im_end))

    def _written(self, queries: Sequence[Query]) -> tuple[list[Prompt], list[Answer]]:
        """Prompts, and answers to be filled, of one batch."""
        kind, decoding = queries[0].answer, queries[0].decoding
        prompts = [_prompt(example) for example in self._encode(queries)]
        codes, holes = self._known(queries)
        answers = [
            self.forms.build(kind, decoding, self._units(query), code, hole, len(prompt.tokens))
            for query, prompt, code, hole in zip(queries, prompts, codes, holes, strict=True)
        ]
        return prompts, answers

    def _canvas(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        ids: Sequence[int],
        multiple: int,
        rows: int | None,
        names: Sequence[str] = (),
        frames: int = 0,
    ) -> Canvas:
        return build_canvas(
            prompts,
            answers,
            self.codecs.layout.vocabulary,
            self.forms.sets,
            example_ids=ids,
            speech=self.codecs.layout.speech,
            multiple=multiple,
            rows=rows,
            limit=self.limit,
            names=names,
            frames=frames,
        )

    def _encode(self, queries: Sequence[Query]) -> list[EncodedExample]:
        records = [Record(q.request_id, q.what, q.messages, q.images, q.audios) for q in queries]
        try:
            return encode_prompts(records, self.codecs)
        except RejectedRecord as error:
            raise UserError(f"{queries[error.number].name}: {error}") from error

    def _units(self, query: Query) -> int:
        if query.heard is not None:
            return round(query.heard * SPEECH_TOKENS_PER_SECOND)
        return len(self.codecs.layout.encode_text(query.text))

    def _known(self, queries: Sequence[Query]) -> tuple[list[Any], list[Any]]:
        if queries[0].answer != "hole":
            return [None] * len(queries), [None] * len(queries)
        size = self.codecs.assistant_image_size
        pictures = np.stack([fit_image(query.picture, size) for query in queries])  # type: ignore[arg-type]
        filled = np.concatenate([pictures, np.repeat(pictures[-1:], self.rows - len(pictures), axis=0)])
        codes = np.asarray(self.codecs.images(filled))[: len(queries)]
        return list(codes), [self._code_hole(query, size) for query in queries]

    def _code_hole(self, query: Query, size: int) -> np.ndarray:
        """bool [k]: the codes whose patch touches the hole."""
        hole = query.hole
        if hole is None or hole.shape != (size, size):
            raise UserError(
                f"{query.name}: hole has shape {None if hole is None else hole.shape}, it must be ({size}, {size})"
            )
        return code_hole(hole, self.codecs.image_grid)

    def _unconditional(self, canvas: Canvas, others: Sequence[Prompt], multiple: int) -> Canvas:
        layout = self.codecs.layout
        return unconditional_canvas(canvas, others, layout.vocabulary, speech=layout.speech, multiple=multiple)

    def _read(
        self, canvas: Canvas, result: SampleResult, answers: Sequence[Answer], queries: Sequence[Query], strips: bool
    ) -> list[Response]:
        tokens, starts, steps = (np.asarray(x) for x in (result.tokens, canvas.answer_start, result.steps))
        spans = [slice(int(s), int(s) + len(a)) for s, a in zip(starts, answers, strict=False)]
        parsed = [self.forms.parse(row[span]) for row, span in zip(tokens, spans, strict=False)]
        images, audios = self._draw(parsed), self._speak(parsed)
        films = film(canvas, result) if strips else None
        vocabulary = self.codecs.layout.vocabulary
        # Speech also ends with its own token; whatever stands after it is no sound.
        ends = [vocabulary.im_end, *([vocabulary.end_audio] if queries[0].answer == "speech" else [])]
        finish = finish_reasons(canvas, result, *ends)
        responses = []
        for i, (query, answer) in enumerate(zip(queries, parsed, strict=True)):
            image = images[i]
            if query.answer == "hole" and image is not None and query.hole is not None:
                given = fit_image(query.picture, self.codecs.assistant_image_size)  # type: ignore[arg-type]
                image = np.where(query.hole[..., None], image, given)
            strip = films[:, i, spans[i]] if films is not None else None
            audio, speech = audios[i], answer.speech
            responses.append(Response(answer.text, image, audio, speech, strip, finish[i], int(steps[i])))
        return responses

    def _draw(self, parsed: Sequence[Parsed]) -> list[np.ndarray | None]:
        count = self.codecs.image_grid[0] * self.codecs.image_grid[1]
        whole = [i for i, p in enumerate(parsed) if p.image is not None and len(p.image) == count]
        images: list[np.ndarray | None] = [None] * len(parsed)
        if whole:
            codes = np.stack([parsed[i].image for i in whole])  # type: ignore[misc]
            for i, picture in zip(whole, self.codecs.draw(codes), strict=True):
                images[i] = picture
        return images

    def _speak(self, parsed: Sequence[Parsed]) -> list[Waveform | None]:
        spoken = [i for i, p in enumerate(parsed) if p.speech is not None and len(p.speech)]
        audios: list[Waveform | None] = [None] * len(parsed)
        if spoken:
            waves = self.codecs.speak([parsed[i].speech for i in spoken])  # type: ignore[misc]
            for i, wave in zip(spoken, waves, strict=True):
                audios[i] = wave
        return audios


def _prompt(example: EncodedExample) -> Prompt:
    heard = len(example.frame_counts) > 0
    return Prompt(example.tokens, example.frames if heard else None, tuple(map(int, example.frame_counts)))


def _ids(queries: Sequence[Query]) -> list[int]:
    return [query.request_id for query in queries]


def _names(queries: Sequence[Query]) -> list[str]:
    return [query.name for query in queries]
