"""Free conversation: any history of turns holding any media, and an answer in any form.

The registry's tasks are prompts over the same path; a conversation borrows their words where the model knows no others.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from omnidiff_jax.answering.asked import is_given, several, told_of, words
from omnidiff_jax.answering.media import Audio, to_audio, to_image
from omnidiff_jax.answering.queries import TEXT, Query, reworded
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message, Waveform
from omnidiff_jax.tasks.chat import ROLES
from omnidiff_jax.tasks.registry import AnswerKind, Decoding, task
from omnidiff_jax.words import is_blank

ANSWERS: tuple[AnswerKind, ...] = ("text", "speech", "image", "text_and_speech")
PARTS = ("text", "image", "audio")
# Of a turn given by fields: as the tasks ask, a question stands before what it is about, speech before a picture.
_ORDER = ("audio", "text", "image")
_PART = f'{{"type": one of {", ".join(PARTS)}, TYPE: value}}'
_TURNS = '[{"role": "user", "content": "hello"}]'
# What stands for each part in a turn.
_PLACES = {"text": TEXT, "image": IMAGE_TAG, "audio": AUDIO_TAG}


@dataclasses.dataclass(frozen=True)
class Turns:
    """A conversation with its media in memory.

    Attributes:
        messages: tags stand for the media.
        images: of all turns, in order; uint8 [H, W, 3].
        audios: waveforms of all turns, in order.
        last: "text", "image", "audio": the parts of the user's last turn, in order; `text` is its words.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...]
    audios: tuple[Any, ...]
    last: tuple[str, ...]
    text: str


def read_turns(messages: Sequence[Any]) -> Turns:
    """Turns as users write them.

    Args:
        messages: each {"role", "content"} with a string or a list of parts as content; or {"role", "text", "image",
            "audio"}. A part is a string, {"type": "text" | "image" | "audio", TYPE: value}, {TYPE: value}, a PIL image
            or an answer's audio, and may stand alone. An assistant's turn may be an answer of the model. Media as
            `answering.media` takes them.

    Raises:
        UserError: no turns, an unknown role or part, two things where one is heard, text that holds a media tag, or a
            last turn not the user's.
    """
    given = several(messages, "messages", "turns", _TURNS)
    if not given:
        raise UserError(f"messages must be a list of turns, such as {_TURNS}; this one is empty")
    turns: list[Message] = []
    media: dict[str, list[Any]] = {"image": [], "audio": []}
    last: tuple[str, ...] = ()
    text = ""
    for number, turn in enumerate(given, start=1):
        with told_of(f"message {number}"):
            role, parts = _parts(turn)
            content = [_placed(kind, value, media) for kind, value in parts]
        if all(kind == "text" and is_blank(value) for kind, value in parts):
            raise UserError(f"message {number} is empty; give it text, an image or audio")
        turns.append(Message(role, "\n".join(content)))
        if role == "user":
            last = tuple(kind for kind, _ in parts)
            text = "\n".join(value for kind, value in parts if kind == "text")
    if turns[-1].role != "user":
        raise UserError(f"the last message is the {turns[-1].role}'s; the model answers a user's turn")
    return Turns(tuple(turns), tuple(media["image"]), tuple(media["audio"]), last, text)


def _placed(kind: str, value: Any, media: Mapping[str, list[Any]]) -> str:
    """A text, or the tag of a medium, which is read and added to `media`."""
    if kind != "text":
        media[kind].append((to_image if kind == "image" else to_audio)(value))
        return IMAGE_TAG if kind == "image" else AUDIO_TAG
    for tag in (IMAGE_TAG, AUDIO_TAG):
        if tag in value:
            raise UserError(f"the text holds {tag}, the place of a medium; give it as a part")
    return value


def _parts(turn: Any) -> tuple[str, list[tuple[str, Any]]]:
    """Role and parts, (kind, value), of one turn; texts are strings."""
    if not isinstance(turn, Mapping):
        turn = {"role": getattr(turn, "role", "assistant"), "content": getattr(turn, "content", turn)}
    role = words(turn.get("role"), "role")
    if role not in ROLES:
        raise UserError(f"role {role!r} is unknown; {suggest(role, ROLES)}")
    known = ("role", "content", *PARTS)
    for key in turn:
        if key not in known:
            raise UserError(f"unknown key {key!r}; {suggest(key, known)}")
    fields = [kind for kind in _ORDER if is_given(turn.get(kind))]
    content = turn.get("content")
    if content is None:
        parts = [(kind, turn[kind]) for kind in fields]
    elif fields:
        raise UserError(f"{fields[0]} stands beside content, which is all of a turn; make it a part of content")
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes | bytearray | memoryview):
        parts = [part for given in content for part in _part(given)]
    else:
        parts = _part(content)
    return role, [(kind, words(value, "text") if kind == "text" else value) for kind, value in parts]


def _part(part: Any) -> list[tuple[str, Any]]:
    """(kind, value) of one part; several of an answer."""
    if isinstance(part, str):
        return [("text", part)]
    if isinstance(part, Image.Image):
        return [("image", part)]
    if isinstance(part, Audio | Waveform):
        return [("audio", part)]
    if isinstance(part, Mapping):
        return [_named_part(part)]
    if all(hasattr(part, kind) for kind in PARTS):
        found = [(kind, getattr(part, kind)) for kind in PARTS if is_given(getattr(part, kind))]
        if not found:
            raise UserError(
                "this answer of the model is empty; leave out its turn and the one that asked, or ask again"
            )
        return found
    raise UserError(f"a part must be a string or {_PART}, not {type(part).__name__}")


def _named_part(part: Mapping[Any, Any]) -> tuple[str, Any]:
    given = [key for key in part if key != "type" and part[key] is not None]
    kind = part.get("type", given[0] if given else None)
    if not isinstance(kind, str) or kind not in PARTS or kind not in given:
        raise UserError(f"a part must be a string or {_PART}")
    for key in given:
        if key != kind:
            remedy = "make it a part of its own" if key in PARTS else suggest(key, ("type", *PARTS))
            raise UserError(f"the part of type {kind} also has {key!r}; {remedy}")
    return kind, part[kind]


def conversation_query(
    turns: Turns, answer: str, decoding: Mapping[str, Decoding], *, seed: int = 0, request_id: int = 0
) -> Query:
    """The query of a conversation.

    Args:
        turns: from `read_turns`.
        answer: one of `ANSWERS`.
        decoding: by task; the nearest task's is taken.
        seed: of the sampling noise.
        request_id: likewise.

    Raises:
        UserError: an unknown form of answer.
    """
    if words(answer, "answer") not in ANSWERS:
        raise UserError(f"answer = {answer!r}; {suggest(answer, ANSWERS)}")
    kind: AnswerKind = next(known for known in ANSWERS if known == answer)
    name = _nearest(kind, turns.last)
    like, messages = task(name), turns.messages
    template = "\n".join(_PLACES[part] for part in dict.fromkeys(turns.last))
    if name == "t2i" and set(turns.last) == {"text"}:
        template = like.user
        messages = (*messages[:-1], Message("user", template.format(text=turns.text)))
    elif like.system and not any(message.role == "system" for message in messages):
        messages = (Message("system", like.system), *messages)
    settings = decoding[name]
    if settings.adaptive is not None:
        settings = dataclasses.replace(settings, adaptive=None, length=max(settings.length, 64))
    return Query(
        what="the conversation",
        messages=messages,
        answer=kind,
        decoding=settings,
        worded=reworded(template),
        images=turns.images,
        audios=turns.audios,
        text=turns.text,
        heard=sum(wave.seconds for wave in turns.audios) if "audio" in turns.last else None,
        request_id=request_id,
        seed=seed,
    )


def _nearest(kind: AnswerKind, last: Collection[str]) -> str:
    """The task whose prompt and decoding are nearest to an answer of `kind` to a turn of these parts."""
    if kind == "image":
        return "s2i" if "audio" in last else "t2i"
    if "audio" in last or kind == "text_and_speech":
        return "spoken_vqa" if "image" in last else "spoken_qa"
    if kind == "speech":
        return "tts"
    return "vqa" if "image" in last else "text_qa"
