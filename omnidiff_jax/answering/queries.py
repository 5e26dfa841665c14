"""What is asked of a model, and what it gives back, with media in memory."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from omnidiff_jax.config import build, overlaid, suggest, to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message, Waveform
from omnidiff_jax.tasks.registry import AnswerKind, Decoding, Task
from omnidiff_jax.tokenizers.text import TextTokenizer
from omnidiff_jax.words import clean, is_blank

# Short names of what is set most, as `settings` of a request takes them.
SHORT = {
    "steps": "sampler.steps",
    "temperature": "sampler.filters.temperature",
    "top_p": "sampler.filters.top_p",
    "top_k": "sampler.filters.top_k",
    "guidance": "sampler.guidance.scale",
    "repetition": "sampler.repetition.penalty",
    "block": "sampler.blocks.size",
}

# The place of the words in a user's turn, and those of media.
TEXT = "{text}"
_TAG = f"{re.escape(IMAGE_TAG)}|{re.escape(AUDIO_TAG)}"

# Unknown characters that a message names.
_NAMED = 12


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks of one task.

    Attributes:
        text: the request; blank = the task's default.
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

    def check(self, task: Task) -> None:
        """Raises UserError if an input of the task is missing, or one is given that it does not use."""
        given = {name for name in ("image", "audio", "hole") if getattr(self, name) is not None}
        task.check_inputs(given | (set() if is_blank(self.text) else {"text"}))


@dataclasses.dataclass(frozen=True)
class Query:
    """What is decoded: a conversation, and the form of its answer. Every task is a way to write one.

    Whatever the user wrote is here in one spelling (`words.clean`): the same letters and lines get the same answer.

    Attributes:
        what: names it in messages: "task t2i".
        number: of several requests, from 1; 0 = alone.
        messages: the turns so far; their tags stand for `images` and `audios` in order.
        answer: what the answer is made of.
        decoding: how it is generated.
        worded: the last request in other words and without its media; guidance by random text asks it.
        images: uint8 [H, W, 3].
        audios: waveforms.
        text: of the last request, whose size an adaptive length is reckoned from, where `heard` is None.
        heard: seconds of speech in the last request.
        picture: uint8 [H, W, 3] to inpaint, and `hole`, bool [size, size].
        request_id: uint32; sampling noise is keyed by it and `seed`.
        seed: of the sampling noise.
    """

    what: str
    messages: tuple[Message, ...]
    answer: AnswerKind
    decoding: Decoding
    worded: Callable[[str], str]
    images: tuple[np.ndarray, ...] = ()
    audios: tuple[Waveform, ...] = ()
    text: str = ""
    heard: float | None = None
    picture: np.ndarray | None = None
    hole: np.ndarray | None = None
    request_id: int = 0
    seed: int = 0
    number: int = 0

    def __post_init__(self) -> None:
        messages = tuple(Message(message.role, clean(message.content)) for message in self.messages)
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "text", clean(self.text))

    @property
    def name(self) -> str:
        """What messages call it: "request 2: task t2i", or "task t2i" where it is alone."""
        return f"{request_name(self.number)}: {self.what}" if self.number else self.what

    def check_taught(self, tokenizer: TextTokenizer) -> str:
        """Which characters of the request the model was never taught, in words; "" if it knows them all.

        Raises:
            UserError: all of them, so that the answer would be to something else.
        """
        unknown = tokenizer.untaught(self.text)
        if not unknown:
            return ""
        named = f"{' '.join(map(_shown, unknown[:_NAMED]))}{' …' if len(unknown) > _NAMED else ''}"
        if is_blank("".join(character for character in self.text if character not in unknown)):
            raise UserError(f"{self.name}: the model was never taught: {named}; ask in characters that it knows")
        return f"{self.what}: the model was never taught {named}; the answer may not be to what was asked"


def _shown(character: str) -> str:
    """A character to be read in a message, by its number where it could not be seen."""
    return f"U+{ord(character):04X}" if is_blank(character) or not character.isprintable() else f"'{character}'"


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        text: "" if the answer has none.
        image: uint8 [H, W, 3], or None.
        audio: or None.
        speech: int32 codes that `audio` was decoded from, or None.
        strip: int32 [steps, n], the answer after each step; None unless asked for.
        finish: "end" where the model ended its answer (a picture: where every code is drawn), "length" where it filled
            all positions without an end, "steps" where positions are still masked.
        steps: calls of the model that revealed something.
    """

    text: str = ""
    image: np.ndarray | None = None
    audio: Waveform | None = None
    speech: np.ndarray | None = None
    strip: np.ndarray | None = None
    finish: str = "end"
    steps: int = 0


def request_name(number: int) -> str:
    """What messages call one of several requests, counted from 1."""
    return f"request {number}"


def reworded(template: str) -> Callable[[str], str]:
    """A request in other words and without its media, of a user's turn with `{text}` and tags in it.

    The words stand where the request's did, or in place of the first medium where it had none.
    """
    if TEXT not in template:
        template = re.sub(_TAG, TEXT, template, count=1)
    bare = re.sub(_TAG, "", template)
    return lambda text: bare.replace(TEXT, text)


def task_query(task: Task, request: Request, decoding: Decoding, seed: int = 0) -> Query:
    """A task's request as the conversation it is.

    Raises:
        UserError: an input of the task is missing, or one is given that it does not use.
    """
    request.check(task)
    messages = task.prompt(request.text)
    content = "".join(message.content for message in messages)
    return Query(
        what=f"task {task.name}",
        messages=messages,
        answer=task.answer,
        decoding=decoding,
        worded=reworded(task.user),
        images=(request.image,) if IMAGE_TAG in content and request.image is not None else (),
        audios=(request.audio,) if AUDIO_TAG in content and request.audio is not None else (),
        text=request.text,
        heard=request.audio.seconds if request.audio is not None else None,
        picture=request.image if task.answer == "hole" else None,
        hole=request.hole,
        request_id=request.request_id,
        seed=seed,
    )


def adjusted(decoding: Decoding, settings: Mapping[str, Any], where: str = "settings") -> Decoding:
    """`decoding` with some settings replaced.

    Args:
        settings: short names (`SHORT`), "length", or the groups of `Decoding` as configs write them, dotted or nested:
            {"steps": 8, "sampler.guidance.scale": 1.5, "sampler": {"blocks": {"size": 16}}}.
        where: of the settings, for messages.

    Raises:
        UserError: an unknown name, or a value that cannot be.
    """
    if not settings:
        return decoding
    values = to_dict(decoding)
    for name, value in settings.items():
        *groups, last = SHORT.get(name, name).split(".")
        place = values
        for depth, group in enumerate(groups):
            # A strategy with nothing to say is not mentioned; `build` refuses what is no group.
            found = place.setdefault(group, {}) if depth else place.get(group)
            if not isinstance(found, dict):
                raise UserError(f"unknown setting {where}.{name}; {suggest(name, (*SHORT, *values))}")
            place = found
        if not groups and last not in values:
            raise UserError(f"unknown setting {where}.{name}; {suggest(name, (*SHORT, *values))}")
        place[last] = overlaid(place.get(last), value)
        if name == "length":
            values["adaptive"] = None
    return build(Decoding, values, where)
