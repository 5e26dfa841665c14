"""Free conversation: any history of turns holding any media, and an answer in any form.

The registry's tasks are prompts over the same path; a conversation borrows their words where the model knows no others.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omnidiff_jax.answering.media import to_audio, to_image
from omnidiff_jax.answering.queries import TEXT, Query, reworded
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message
from omnidiff_jax.tasks.chat import ROLES
from omnidiff_jax.tasks.registry import AnswerKind, Decoding, task
from omnidiff_jax.words import is_blank

ANSWERS: tuple[AnswerKind, ...] = ("text", "speech", "image", "text_and_speech")
PARTS = ("text", "image", "audio")
# Of a turn given by fields: as the tasks ask, a question stands before what it is about, speech before a picture.
_ORDER = ("audio", "text", "image")
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
            "audio"}. A part is a string, {"type": "text" | "image" | "audio", TYPE: value}, or {TYPE: value}. An
            assistant's turn may be an answer of the model. Media as `answering.media` takes them.

    Raises:
        UserError: no turns, an unknown role or part, text that holds a media tag, or a last turn not the user's.
    """
    turns, images, audios = [], [], []
    last: tuple[str, ...] = ()
    words = ""
    if isinstance(messages, str | Mapping) or not messages:
        raise UserError('messages must be a list of turns, such as [{"role": "user", "content": "hello"}]')
    for number, turn in enumerate(messages, start=1):
        where = f"message {number}"
        role, parts = _parts(turn, where)
        content = []
        for kind, value in parts:
            if kind == "text":
                if not isinstance(value, str):
                    raise UserError(f"{where}: text must be a string, not {type(value).__name__}")
                for tag in (IMAGE_TAG, AUDIO_TAG):
                    if tag in value:
                        raise UserError(f"{where}: the text holds {tag}, the place of a medium; give it as a part")
                content.append(value)
            elif kind == "image":
                images.append(to_image(value))
                content.append(IMAGE_TAG)
            else:
                audios.append(to_audio(value))
                content.append(AUDIO_TAG)
        turns.append(Message(role, "\n".join(content)))
        if role == "user":
            last = tuple(kind for kind, _ in parts)
            words = "\n".join(value for kind, value in parts if kind == "text")
    if turns[-1].role != "user":
        raise UserError(f"the last message is the {turns[-1].role}'s; the model answers a user's turn")
    return Turns(tuple(turns), tuple(images), tuple(audios), last, words)


def _parts(turn: Any, where: str) -> tuple[str, list[tuple[str, Any]]]:
    """Role and parts, (kind, value), of one turn."""
    if not isinstance(turn, Mapping):
        turn = {"role": getattr(turn, "role", "assistant"), "content": getattr(turn, "content", turn)}
    role = turn.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: role {role!r} is unknown; {suggest(str(role), ROLES)}")
    for key in turn:
        if key not in ("role", "content", *PARTS):
            raise UserError(f"{where}: unknown key {key!r}; {suggest(str(key), ('role', 'content', *PARTS))}")
    content = turn.get("content")
    if content is None:
        parts = [(kind, turn[kind]) for kind in _ORDER if turn.get(kind) is not None and not _empty(turn[kind])]
    elif isinstance(content, str):
        parts = [("text", content)]
    elif isinstance(content, Sequence):
        parts = [_part(part, where) for part in content]
    else:
        found = ((kind, getattr(content, kind, None)) for kind in ("text", "image", "audio"))
        parts = [(kind, value) for kind, value in found if value is not None and not _empty(value)]
    if not parts or all(kind == "text" and is_blank(str(value)) for kind, value in parts):
        raise UserError(f"{where} is empty; give it text, an image or audio")
    return role, parts


def _empty(value: Any) -> bool:
    return isinstance(value, str) and not value


def _part(part: Any, where: str) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Mapping):
        kind = part.get("type") or next((kind for kind in PARTS if kind in part), None)
        if kind in PARTS and kind in part:
            return kind, part[kind]
    raise UserError(f'{where}: a part must be a string or {{"type": one of {", ".join(PARTS)}, TYPE: value}}')


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
    if answer not in ANSWERS:
        raise UserError(f"answer = {answer!r}; {suggest(str(answer), ANSWERS)}")
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
