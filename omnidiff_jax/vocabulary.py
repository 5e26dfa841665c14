"""The one vocabulary of text, speech and image tokens. Nothing outside this module knows an id.

Layout: text pieces, then special tokens, then speech codes, then image codes. `Vocabulary.released()` is the
176,264-id table of the released model (special_tokens of its tokenizer); `Vocabulary.compact()` is the same order
over another text tokenizer and other codebooks.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError

# Specials in id order; the first follows the last text piece.
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
DREAM_SPECIALS = ("<|beginoftext|>", "<|mask|>")
OMNI_SPECIALS = (
    "<|begin_of_image|>", "<|end_of_image|>", "<|context_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|context_of_video|>", "<|begin_of_patch|>", "<|end_of_patch|>", "<|context_of_patch|>", "<|begin_of_quad|>",
    "<|end_of_quad|>", "<|begin_of_ref|>", "<|end_of_ref|>", "<|begin_of_box|>", "<|end_of_box|>", "<|image|>",
    "<|video|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|context_of_audio|>", "<|audio|>",
)  # fmt: skip
RELEASED_SPECIALS = QWEN_SPECIALS + DREAM_SPECIALS + OMNI_SPECIALS
# What the chat layout and the sampler need; a compact vocabulary has at least these.
COMPACT_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<|begin_of_image|>", "<|end_of_image|>",
    "<|context_of_image|>", "<|image|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|context_of_audio|>",
    "<|audio|>",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IdRange:
    """A run of ids [start, stop) that stands for codes 0 .. stop - start - 1."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def contains(self, ids: Any) -> Any:
        """bool [...]: which of `ids` lie in the range. Works on ints, numpy and jax arrays."""
        return (ids >= self.start) & (ids < self.stop)

    def encode(self, codes: Any) -> Any:
        """Codes [...] -> ids [...].

        Raises:
            UserError: a concrete code outside the codebook.
        """
        if isinstance(codes, (int, np.integer, np.ndarray)) and np.size(codes):
            low, high = int(np.min(codes)), int(np.max(codes))
            if low < 0 or high >= len(self):
                raise UserError(f"code {low if low < 0 else high} is outside the codebook 0..{len(self) - 1}")
        return codes + self.start

    def decode(self, ids: Any) -> Any:
        """Ids [...] -> codes [...]; ids outside the range give codes outside the codebook."""
        return ids - self.start


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Sizes and names; every id follows from them.

    Attributes:
        text_size: number of text pieces, ids 0 .. text_size - 1.
        specials: names of the special tokens, ids text_size, text_size + 1, ...
        speech_codes: size of the speech codebook.
        image_codes: size of the image codebook.
    """

    text_size: int
    specials: tuple[str, ...]
    speech_codes: int
    image_codes: int

    def __post_init__(self):
        missing = [name for name in COMPACT_SPECIALS if name not in self.specials]
        if missing:
            raise ValueError(f"vocabulary lacks the special tokens {missing}")
        if len(set(self.specials)) != len(self.specials):
            raise ValueError("vocabulary names a special token twice")
        if min(self.text_size, self.speech_codes, self.image_codes) < 0:
            raise ValueError("vocabulary sizes must not be negative")

    @classmethod
    def released(cls) -> "Vocabulary":
        """The released layout: 151,643 text ids, 45 specials, 16,384 speech and 8,192 image codes."""
        return cls(text_size=151643, specials=RELEASED_SPECIALS, speech_codes=16384, image_codes=8192)

    @classmethod
    def compact(cls, text_size: int, speech_codes: int, image_codes: int) -> "Vocabulary":
        """The same order with only the specials that the chat layout uses."""
        return cls(text_size, COMPACT_SPECIALS, speech_codes, image_codes)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {name: self.text_size + i for i, name in enumerate(self.specials)}

    def id(self, name: str) -> int:
        """Id of the special token `name`.

        Raises:
            UserError: no such special token; the nearest is named.
        """
        if name not in self._ids:
            raise UserError(f"unknown special token {name!r}; {suggest(name, self._ids)}")
        return self._ids[name]

    @property
    def special_ids(self) -> dict[str, int]:
        """Name -> id of every special token."""
        return dict(self._ids)

    @functools.cached_property
    def text(self) -> IdRange:
        return IdRange(0, self.text_size)

    @functools.cached_property
    def speech(self) -> IdRange:
        start = self.text_size + len(self.specials)
        return IdRange(start, start + self.speech_codes)

    @functools.cached_property
    def image(self) -> IdRange:
        return IdRange(self.speech.stop, self.speech.stop + self.image_codes)

    @property
    def size(self) -> int:
        """Number of ids V."""
        return self.image.stop

    @property
    def pad(self) -> int:
        return self.id("<|endoftext|>")

    @property
    def mask(self) -> int:
        return self.id("<|mask|>")

    @property
    def im_start(self) -> int:
        return self.id("<|im_start|>")

    @property
    def im_end(self) -> int:
        return self.id("<|im_end|>")

    @property
    def begin_image(self) -> int:
        return self.id("<|begin_of_image|>")

    @property
    def end_image(self) -> int:
        return self.id("<|end_of_image|>")

    @property
    def begin_audio(self) -> int:
        return self.id("<|begin_of_audio|>")

    @property
    def end_audio(self) -> int:
        return self.id("<|end_of_audio|>")

    @property
    def context_audio(self) -> int:
        return self.id("<|context_of_audio|>")

    @property
    def fingerprint(self) -> str:
        """Short hash of the layout, a part of the tokenizers' fingerprint, which data sets and checkpoints carry."""
        layout = json.dumps(dataclasses.astuple(self)).encode()
        return hashlib.blake2b(layout, digest_size=8).hexdigest()
