r"""The tasks: how each is asked, what its answer is made of, how it is decoded.

Prompts are the released model's. Its demo puts a newline before a lone `<|audio|>` that its training data
does not have; `Task.prompt(..., style="released")` does so too, the default asks as trained.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message
from omnidiff_jax.sampling import (
    ASR_LENGTH,
    TTS_LENGTH,
    Filters,
    Guidance,
    LengthRule,
    PaperPosition,
    Repetition,
    RestrictedCandidates,
    SamplerConfig,
)
from omnidiff_jax.sampling.ranges import POSITIONS, OutOfRange, within
from omnidiff_jax.words import is_blank

AnswerKind = Literal["text", "image", "speech", "text_and_speech", "hole"]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an answer is generated.

    Attributes:
        sampler: schedule, confidence, penalties, guidance.
        length: positions of the answer L (text and speech, at least 1 unless `adaptive` says it); images have as many
            as their codes need.
        adaptive: rule that sets L instead; its units are text tokens of the request (TTS) or speech tokens heard, at
            12.5 a second (ASR).
        prefill: share of L at which begin-of-audio is put before decoding a spoken answer; None leaves it to the model.
        stop: "end" finishes an answer of text or speech once the turn's end stands before its first mask; "never"
            decodes every position, as the released code does.
        unconditional: prompt of the unconditional canvas under guidance: the task's "empty" prompt, or "random" text of
            the same length in place of the request, its words and media (released T2I).
    """

    sampler: SamplerConfig = SamplerConfig()
    length: int = 64
    adaptive: LengthRule | None = None
    prefill: float | None = None
    stop: Literal["end", "never"] = "end"
    unconditional: Literal["empty", "random"] = "empty"

    def __post_init__(self) -> None:
        within(self, "length", 0, POSITIONS)
        if self.prefill is not None and not 0 <= self.prefill < 1:
            raise OutOfRange(f"prefill = {self.prefill!r} must be a number from 0 up to, but not, 1")


@dataclasses.dataclass(frozen=True)
class Task:
    """One any-to-any task.

    Attributes:
        name: as in the scorecard.
        answer: what the assistant's turn is made of; "hole" is an image with known parts.
        inputs: which of text, image, audio the user gives.
        user: template of the user's turn; `{text}` is the request.
        system: system turn, "" = none.
        default_text: request used where the user gives none.
        decoding: defaults, the released demo's settings where it has any, on this project's better forms.
    """

    name: str
    answer: AnswerKind
    inputs: tuple[str, ...]
    user: str
    system: str = ""
    default_text: str = ""
    decoding: Decoding = Decoding()

    def prompt(self, text: str = "", style: Literal["trained", "released"] = "trained") -> tuple[Message, ...]:
        """System and user turns.

        Args:
            text: the request, for tasks that take text; blank = the task's default.
            style: "released" adds the newline of the released inference code before a lone audio tag.

        Raises:
            UserError: the request holds a media tag, which would stand for a medium that is not there.
        """
        for tag in (IMAGE_TAG, AUDIO_TAG):
            if tag in text:
                raise UserError(
                    f"the text holds {tag}, the place of a medium; leave it out: media are inputs of their own"
                )
        user = self.user.format(text=self.default_text if is_blank(text) else text)
        if style == "released" and user == AUDIO_TAG:
            user = "\n" + user
        turns = [Message("system", self.system)] if self.system else []
        return (*turns, Message("user", user))

    def conversation(self, text: str = "", answer: str = "") -> tuple[Message, ...]:
        """A training sample: the prompt, then the assistant's turn; `answer` is its text, its media are the task's."""
        content = {
            "text": answer,
            "image": IMAGE_TAG,
            "hole": IMAGE_TAG,
            "speech": AUDIO_TAG,
            "text_and_speech": f"{answer}\n{AUDIO_TAG}",
        }[self.answer]
        return (*self.prompt(text), Message("assistant", content))

    def check_inputs(self, given: set[str], shown: Callable[[str], str] = str) -> None:
        """Refuses a request by its inputs.

        Args:
            given: names of the inputs that hold something: blank text does not count (`words.is_blank`).
            shown: an input's name as the user writes it, for messages.

        Raises:
            UserError: an input is missing, or given and not used.
        """
        optional = {"text"} if self.default_text else set()
        takes = f"it takes {', '.join(map(shown, self.inputs))}"
        for name in sorted(set(self.inputs) - optional - given):
            raise UserError(f"task {self.name} needs {shown(name)}; {takes}")
        for name in sorted(given - set(self.inputs)):
            raise UserError(f"task {self.name} does not take {shown(name)}; {takes}")


# Whatever the settings: what cannot stand at a position is not computed either.
_PLAIN = SamplerConfig(candidates=RestrictedCandidates())


def _image_sampler(repetition: float, guidance: float) -> SamplerConfig:
    return dataclasses.replace(
        _PLAIN,
        repetition=Repetition(repetition),
        position=PaperPosition(),
        filters=Filters(top_p=0.9),
        guidance=Guidance(guidance),
    )


_TEXT = dataclasses.replace(_PLAIN, filters=Filters(top_p=0.9))
_SPOKEN = dataclasses.replace(_TEXT, repetition=Repetition(1.2))
_HALF = dataclasses.replace(_TEXT, steps_per_token=0.5)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("text_qa", "text", ("text",), "{text}", decoding=Decoding(_TEXT, 64)),
        Task(
            "captioning",
            "text",
            ("text", "image"),
            "{text}\n" + IMAGE_TAG,
            default_text="Describe the image.",
            decoding=Decoding(_TEXT, 64),
        ),
        Task("vqa", "text", ("text", "image"), "{text}\n" + IMAGE_TAG, decoding=Decoding(_TEXT, 64)),
        Task(
            "t2i",
            "image",
            ("text",),
            "Generate an image based on the provided text description.\n{text}",
            decoding=Decoding(_image_sampler(1.2, 0.0), unconditional="random"),
        ),
        Task(
            "asr",
            "text",
            ("audio",),
            "Convert the speech to text.\n" + AUDIO_TAG,
            decoding=Decoding(_HALF, 50, adaptive=ASR_LENGTH),
        ),
        Task(
            "tts",
            "speech",
            ("text",),
            "Convert the text to speech.\n{text}",
            decoding=Decoding(dataclasses.replace(_SPOKEN, steps_per_token=0.5), 50, adaptive=TTS_LENGTH),
        ),
        Task(
            "spoken_qa",
            "text_and_speech",
            ("audio",),
            AUDIO_TAG,
            system="Please response the input audio.",
            decoding=Decoding(_SPOKEN, 128, prefill=0.25),
        ),
        Task(
            "s2i",
            "image",
            ("audio",),
            AUDIO_TAG,
            system="Please generate an image based on the input audio.",
            decoding=Decoding(_image_sampler(1.5, 2.0)),
        ),
        Task(
            "spoken_vqa",
            "text_and_speech",
            ("audio", "image"),
            f"{AUDIO_TAG}\n{IMAGE_TAG}",
            system="Please response the input audio based on the given image.",
            decoding=Decoding(_SPOKEN, 128, prefill=0.25),
        ),
        Task(
            "inpainting",
            "hole",
            ("text", "image", "hole"),
            "Generate an image based on the provided text description.\n{text}",
            decoding=Decoding(_image_sampler(1.0, 0.0), unconditional="random"),
        ),
    )
}


def task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UserError: no such task; the nearest is named.
    """
    return choose(TASKS, name, "task")
