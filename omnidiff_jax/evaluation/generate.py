"""From requests to answers in their media: the one path of `omnidiff sample`, the scorecard and the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omnidiff_jax.data.encode import Codecs, encode_prompts, fit_image
from omnidiff_jax.data.sources import RejectedRecord
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, EncodedExample, Message, Record, Waveform
from omnidiff_jax.sampling.canvas import Canvas, Prompt, build_canvas
from omnidiff_jax.sampling.denoiser import Denoiser
from omnidiff_jax.sampling.guidance import random_text_prompt, unconditional_canvas
from omnidiff_jax.sampling.loop import sample
from omnidiff_jax.sampling.results import SampleResult, film
from omnidiff_jax.sampling.stopping import Stopping
from omnidiff_jax.tasks.answers import AnswerForms, Parsed
from omnidiff_jax.tasks.registry import Decoding, Task

SPEECH_TOKENS_PER_SECOND = 12.5


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks.

    Attributes:
        text: the request; "" = the task's default.
        image: uint8 [H, W, 3] to look at, or to inpaint.
        audio: heard speech.
        hole: bool [size, size] over the assistant's image size, True where the picture is to be drawn anew.
        request_id: uint32; sampling noise is keyed by it.
    """

    text: str = ""
    image: np.ndarray | None = None
    audio: Waveform | None = None
    hole: np.ndarray | None = None
    request_id: int = 0


@dataclasses.dataclass(frozen=True)
class Response:
    """Attributes:
    text: "" if the answer has none.
    image: uint8 [H, W, 3], or None.
    audio: or None.
    speech: int32 codes that `audio` was decoded from, or None.
    strip: int32 [steps, n], the answer after each step; None unless asked for.
    """

    text: str = ""
    image: np.ndarray | None = None
    audio: Waveform | None = None
    speech: np.ndarray | None = None
    strip: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Voices:
    """How codes become media again.

    Attributes:
        draw: int [B, k] codes -> uint8 [B, H, W, 3].
        speak: speech codes of each answer -> waveforms.
    """

    draw: Callable[[np.ndarray], np.ndarray]
    speak: Callable[[list[np.ndarray]], list[Waveform]]


class Generator:
    """Answers batches of requests with one model.

    Batches are filled up to `rows` and lengths rounded up, so that few programs are compiled; an answer does not depend
    on the other requests of its batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codecs: Codecs,
        voices: Voices,
        decoding: Mapping[str, Decoding],
        *,
        image_grid: tuple[int, int],
        rows: int = 64,
        multiple: int = 32,
        limit: int | None = None,
        seed: int = 0,
    ):
        """Opens a generator.

        Args:
            denoiser: the model.
            codecs: media to codes.
            voices: codes to media.
            decoding: settings by task name; tasks left out use their defaults.
            image_grid: codes of a drawn image, (rows, columns).
            rows: requests decoded together.
            multiple: canvas lengths are rounded up to this.
            limit: longest prompt + answer.
            seed: of the sampling noise.
        """
        self._denoiser, self._codecs, self._voices, self._decoding = denoiser, codecs, voices, decoding
        self._grid, self._rows, self._multiple, self._limit = image_grid, rows, multiple, limit
        self._seed = seed
        self._forms = AnswerForms(codecs.layout, image_grid[0] * image_grid[1])

    def decoding(self, task: Task) -> Decoding:
        """Settings that `task` is decoded with."""
        return self._decoding.get(task.name, task.decoding)

    def __call__(self, task: Task, requests: Sequence[Request], *, strips: bool = False) -> list[Response]:
        """Answers the requests, in order.

        Args:
            strips: also return the answer's tokens after each step.

        Raises:
            UserError: a request lacks what the task needs, or does not fit the canvas.
        """
        responses: list[Response] = []
        for start in range(0, len(requests), self._rows):
            responses.extend(self._answer(task, requests[start : start + self._rows], strips))
        return responses

    def _answer(self, task: Task, requests: Sequence[Request], strips: bool) -> list[Response]:
        decoding = self.decoding(task)
        prompts = [self._prompt(example) for example in self._encode(task, requests)]
        codes, holes = self._known(task, requests)
        answers = [
            self._forms.build(task, decoding, self._units(task, request), code, hole)
            for request, code, hole in zip(requests, codes, holes, strict=True)
        ]
        vocabulary = self._codecs.layout.vocabulary
        canvas = build_canvas(
            prompts,
            answers,
            vocabulary,
            self._forms.sets,
            example_ids=[request.request_id for request in requests],
            speech=self._codecs.layout.speech,
            multiple=self._multiple,
            rows=self._rows if len(requests) > 1 else None,
            limit=self._limit,
        )
        empty = self._unconditional(task, decoding, canvas, prompts, requests)
        sampler = decoding.sampler
        if decoding.stop == "end" and task.answer not in ("image", "hole"):
            sampler = dataclasses.replace(sampler, stopping=Stopping(vocabulary.im_end))
        result = sample(self._denoiser, canvas, sampler, self._seed, empty)
        return self._read(canvas, result, answers, requests, holes, strips)

    def _encode(self, task: Task, requests: Sequence[Request]) -> list[EncodedExample]:
        records = []
        for request in requests:
            given = {n for n in ("image", "audio", "hole") if getattr(request, n) is not None}
            task.check_inputs(given | ({"text"} if request.text else set()))
            messages = task.prompt(request.text)
            content = "".join(m.content for m in messages)
            images = (request.image,) if IMAGE_TAG in content else ()
            audios = (request.audio,) if AUDIO_TAG in content else ()
            records.append(Record(request.request_id, task.name, messages, images, audios))
        try:
            return encode_prompts(records, self._codecs)
        except RejectedRecord as error:
            raise UserError(f"task {task.name}: {error}") from error

    def _prompt(self, example: EncodedExample) -> Prompt:
        heard = len(example.frame_counts) > 0
        return Prompt(example.tokens, example.frames if heard else None, tuple(map(int, example.frame_counts)))

    def _units(self, task: Task, request: Request) -> int:
        if request.audio is not None:
            return round(request.audio.seconds * SPEECH_TOKENS_PER_SECOND)
        return len(self._codecs.layout.encode_text(request.text))

    def _known(self, task: Task, requests: Sequence[Request]) -> tuple[list[Any], list[Any]]:
        if task.answer != "hole":
            return [None] * len(requests), [None] * len(requests)
        size = self._codecs.assistant_image_size
        pictures = np.stack([fit_image(request.image, size) for request in requests])  # type: ignore[arg-type]
        filled = np.concatenate([pictures, np.repeat(pictures[-1:], self._rows - len(pictures), axis=0)])
        codes = np.asarray(self._codecs.images(filled))[: len(requests)]
        return list(codes), [self._code_hole(request.hole, size) for request in requests]

    def _code_hole(self, hole: np.ndarray | None, size: int) -> np.ndarray:
        """bool [k]: the codes whose patch touches the hole."""
        rows, columns = self._grid
        if hole is None or hole.shape != (size, size):
            raise UserError(f"hole has shape {None if hole is None else hole.shape}, it must be ({size}, {size})")
        return hole.reshape(rows, size // rows, columns, size // columns).any(axis=(1, 3)).reshape(-1)

    def _unconditional(
        self, task: Task, decoding: Decoding, canvas: Canvas, prompts: Sequence[Prompt], requests: Sequence[Request]
    ) -> Canvas | None:
        if decoding.sampler.guidance.scale == 0:
            return None
        layout = self._codecs.layout
        if decoding.unconditional == "empty":
            turns = [*(m for m in task.prompt() if m.role == "system"), Message("user", "")]
            others = [Prompt(layout.prompt(turns))] * len(prompts)
        else:
            head, tail = self._template(task)
            others = [
                random_text_prompt(head, tail, len(p.tokens), layout.vocabulary.text, self._seed, request.request_id)
                for p, request in zip(prompts, requests, strict=True)
            ]
        return unconditional_canvas(canvas, others, layout.vocabulary, multiple=self._multiple)

    def _template(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """The ids around the request, the same for every request of the task."""
        one, two = (self._codecs.layout.prompt(task.prompt(text)) for text in ("red", "no"))
        shared = min(len(one), len(two))
        head = int(np.cumprod(one[:shared] == two[:shared]).sum())
        tail = int(np.cumprod((one[::-1][:shared] == two[::-1][:shared])[: shared - head]).sum())
        return one[:head], one[len(one) - tail :]

    def _read(
        self,
        canvas: Canvas,
        result: SampleResult,
        answers: Sequence[Any],
        requests: Sequence[Request],
        holes: Sequence[np.ndarray | None],
        strips: bool,
    ) -> list[Response]:
        tokens, starts = np.asarray(result.tokens), np.asarray(canvas.answer_start)
        spans = [slice(int(s), int(s) + len(a)) for s, a in zip(starts, answers, strict=False)]
        parsed = [self._forms.parse(row[span]) for row, span in zip(tokens, spans, strict=False)]
        images = self._draw(parsed)
        audios = self._speak(parsed)
        films = film(canvas, result) if strips else None
        responses = []
        for i, (request, answer, hole) in enumerate(zip(requests, parsed, holes, strict=True)):
            image = images[i]
            if hole is not None and image is not None and request.hole is not None:
                given = fit_image(request.image, self._codecs.assistant_image_size)  # type: ignore[arg-type]
                image = np.where(request.hole[..., None], image, given)
            strip = films[:, i, spans[i]] if films is not None else None
            responses.append(Response(answer.text, image, audios[i], answer.speech, strip))
        return responses

    def _draw(self, parsed: Sequence[Parsed]) -> list[np.ndarray | None]:
        count = self._grid[0] * self._grid[1]
        whole = [i for i, p in enumerate(parsed) if p.image is not None and len(p.image) == count]
        images: list[np.ndarray | None] = [None] * len(parsed)
        if whole:
            codes = np.stack([parsed[i].image for i in whole])  # type: ignore[misc]
            for i, picture in zip(whole, self._voices.draw(codes), strict=True):
                images[i] = picture
        return images

    def _speak(self, parsed: Sequence[Parsed]) -> list[Waveform | None]:
        spoken = [i for i, p in enumerate(parsed) if p.speech is not None and len(p.speech)]
        audios: list[Waveform | None] = [None] * len(parsed)
        if spoken:
            waves = self._voices.speak([parsed[i].speech for i in spoken])  # type: ignore[misc]
            for i, wave in zip(spoken, waves, strict=True):
                audios[i] = wave
        return audios
