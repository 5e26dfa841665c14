r"""The chat layout: messages with media to token ids and targets, and to generation prompts.

`<|im_start|>ROLE\nCONTENT<|im_end|>\n` per message. Targets are the assistant's content, its `<|im_end|>` and the
newline. A tag in the content is replaced by its medium:

- user image: begin, codes, end; assistant image likewise (their sizes differ, which is the caller's choice);
- assistant audio: begin, speech codes, end;
- user audio: begin, context tokens (`SpeechLayout.slots` of its frames), end; the model replaces the embeddings of
  those by the encoded speech.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Message
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.tokenizers.text import TextTokenizer
from omnidiff_jax.vocabulary import Vocabulary

ROLES = ("system", "user", "assistant")
_CODE = re.compile(r"<\|(?:audio|image)_\d+\|>")  # without a group: `re.split` would give it too
_TAGS = re.compile(f"({re.escape(IMAGE_TAG)}|{re.escape(AUDIO_TAG)})")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of one message.

    Attributes:
        kind: "text", "special" (its `value` is a name), "image" or "audio" (its `value` is the tag).
        value: the string it stands for in the rendered prompt.
        role: role of the message.
        target: True where the model is to say it.
    """

    kind: str
    value: str
    role: str
    target: bool


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Ids of a conversation.

    Attributes:
        tokens: int32 [n].
        targets: bool [n], the assistant's share.
    """

    tokens: np.ndarray
    targets: np.ndarray


def media_roles(messages: Sequence[Message], tag: str) -> tuple[str, ...]:
    """Role of the message that each `tag` (`IMAGE_TAG` or `AUDIO_TAG`) stands in, in order."""
    return tuple(message.role for message in messages for _ in range(message.content.count(tag)))


def segments(messages: Sequence[Message], generate: bool) -> Iterator[Segment]:
    """Cuts a conversation into text, special tokens and media.

    Args:
        messages: the turns.
        generate: append the header of the assistant's coming turn.

    Raises:
        UserError: a role that is not one of `ROLES`.
    """
    for message in messages:
        role = message.role
        if role not in ROLES:
            raise UserError(f"message role {role!r} is unknown; {suggest(role, ROLES)}")
        answer = role == "assistant"
        yield Segment("special", "<|im_start|>", role, False)
        # Header and content are one text for the tokenizer, except where targets begin between them.
        text = f"{role}\n"
        if answer:
            yield Segment("text", text, role, False)
            text = ""
        for part in _TAGS.split(message.content):
            if part in (IMAGE_TAG, AUDIO_TAG):
                if text:
                    yield Segment("text", text, role, answer)
                    text = ""
                yield Segment("image" if part == IMAGE_TAG else "audio", part, role, answer)
            else:
                text += part
        if text:
            yield Segment("text", text, role, answer)
        yield Segment("special", "<|im_end|>", role, answer)
        yield Segment("text", "\n", role, answer)
    if generate:
        yield Segment("special", "<|im_start|>", "assistant", False)
        yield Segment("text", "assistant\n", "assistant", False)


@dataclasses.dataclass(frozen=True)
class ChatLayout:
    """Renders conversations over one vocabulary and text tokenizer; the same for released and nano layouts.

    Attributes:
        vocabulary: where every id comes from.
        text: text to ids.
        special_strings: "text": a special token's name in a message is ordinary text; "ids": it becomes the special
            token, as in the released code, so that whoever writes the text can write special tokens.
        speech: how many context tokens a user's audio takes.
    """

    vocabulary: Vocabulary
    text: TextTokenizer
    special_strings: str = "text"
    speech: SpeechLayout = SpeechLayout()

    def __post_init__(self):
        if self.special_strings not in ("text", "ids"):
            raise UserError(f"special_strings = {self.special_strings!r} must be 'text' or 'ids'")
        if self.text.size > self.vocabulary.text_size:
            raise UserError(
                f"text tokenizer has {self.text.size} pieces, the vocabulary only {self.vocabulary.text_size}"
            )

    def render(
        self, messages: Sequence[Message], images: Sequence[np.ndarray] = (), audios: Sequence[np.ndarray | int] = ()
    ) -> Rendered:
        """A training sample.

        Args:
            messages: the turns, at least one of them the assistant's.
            images: codes of each image, int [k], in tag order.
            audios: in tag order: the number of frames (int) of a user's audio, speech codes int [k] of an assistant's.

        Returns:
            ids and targets; no tail padding.

        Raises:
            UserError: no assistant message, an unknown role, or media that do not match the tags.
        """
        if not any(message.role == "assistant" for message in messages):
            raise UserError("the sample has no assistant message, so nothing to learn; add one")
        return self._render(messages, images, audios, generate=False)

    def prompt(
        self, messages: Sequence[Message], images: Sequence[np.ndarray] = (), audios: Sequence[np.ndarray | int] = ()
    ) -> np.ndarray:
        """int32 [n] ids of a generation prompt: the turns, then the assistant's header. Arguments as `render`'s."""
        return self._render(messages, images, audios, generate=True).tokens

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, special strings treated as `special_strings` says."""
        if self.special_strings == "text" or "<" not in text:
            return self.text.encode(text)
        names = self.vocabulary.special_ids
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))}|{_CODE.pattern})", text):
            code = self._code(part)
            if part in names:
                ids.append(names[part])
            else:
                ids.extend(self.text.encode(part) if code is None else [code])
        return ids

    def _code(self, text: str) -> int | None:
        """Id of a code's name, as the released tokenizer lists them among its added tokens."""
        match = _CODE.fullmatch(text)
        if not match:
            return None
        span = self.vocabulary.speech if text.startswith("<|audio") else self.vocabulary.image
        number = int(text[text.index("_") + 1 : -2])
        return int(span.encode(number)) if number < len(span) else None

    def _render(
        self,
        messages: Sequence[Message],
        images: Sequence[np.ndarray],
        audios: Sequence[np.ndarray | int],
        generate: bool,
    ) -> Rendered:
        for tag, media in ((IMAGE_TAG, images), (AUDIO_TAG, audios)):
            count = len(media_roles(messages, tag))
            if count != len(media):
                raise UserError(f"the messages hold {count} {tag} tags for {len(media)} media; they must match")
        waiting_images, waiting_audios = iter(images), iter(audios)
        parts: list[np.ndarray] = []
        targets: list[bool] = []
        for segment in segments(messages, generate):
            ids: np.ndarray | list[int]
            if segment.kind == "special":
                ids = [self.vocabulary.id(segment.value)]
            elif segment.kind == "text":
                ids = self.encode_text(segment.value)
            elif segment.kind == "image":
                ids = self._image(next(waiting_images))
            else:
                ids = self._audio(next(waiting_audios), segment.role)
            parts.append(np.asarray(ids, np.int32))
            targets.append(segment.target)
        return Rendered(np.concatenate(parts), np.repeat(targets, [len(part) for part in parts]))

    def _image(self, codes: np.ndarray) -> np.ndarray:
        vocabulary = self.vocabulary
        inner = vocabulary.image.encode(np.asarray(codes, np.int32))
        return np.concatenate([[vocabulary.begin_image], inner, [vocabulary.end_image]])

    def _audio(self, medium: np.ndarray | int, role: str) -> np.ndarray:
        vocabulary = self.vocabulary
        if role == "assistant":
            inner = vocabulary.speech.encode(np.asarray(medium, np.int32))
        else:
            inner = np.full(self.speech.slots(int(medium)), vocabulary.context_audio)
        return np.concatenate([[vocabulary.begin_audio], inner, [vocabulary.end_audio]])
