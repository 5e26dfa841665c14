"""Text to ids and back: SentencePiece for models trained here, byte-level BPE for the released model.

A text tokenizer knows text only. Special tokens belong to the `Vocabulary`, and a string that looks like one
("<|im_end|>") is ordinary text here; `tasks/chat.py` decides where special tokens stand.
"""

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from omnidiff_jax.config import Count
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import write_bytes
from omnidiff_jax.vocabulary import Vocabulary

MODEL_FILE = "text.model"
# How Qwen2 cuts text into words before byte-level BPE (tokenizer.json of the Qwen2 family).
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class TextTokenizer(Protocol):
    """What the chat layout needs of a text tokenizer."""

    @property
    def size(self) -> int:
        """Number of pieces; ids are 0 .. size - 1."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Any string encodes; none of its characters is special."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; ids that are no text pieces are skipped."""

    def untaught(self, text: str) -> list[str]:
        """Characters of `text` that no piece of text stands for, each once, in order; a model saw none of them."""


@dataclasses.dataclass(frozen=True)
class SentencePieceConfig:
    """How to train a SentencePiece model.

    Attributes:
        kind: "unigram" or "bpe".
        size: number of pieces, the 256 byte pieces and the unknown piece included. A corpus that cannot fill it
            gives a smaller model.
        phrases: words that always make one piece together, e.g. ("top left",), where they follow a space or begin
            a line.
    """

    kind: str = "unigram"
    size: Count = 512
    phrases: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in ("unigram", "bpe"):
            raise UserError(f"text tokenizer kind = {self.kind!r} must be 'unigram' or 'bpe'")


class SentencePieceTokenizer:
    """SentencePiece with byte fallback: characters never seen in training become byte pieces, so any text encodes.

    Lines are encoded one by one and joined by the newline's byte piece, so that a word has the same piece at the
    start of a line as within it. Decoding gives the text back exactly, except that U+2581, SentencePiece's own
    sign for a space, comes back as a space, and lone surrogates as question marks.
    """

    def __init__(self, model: bytes):
        """Wraps a serialized SentencePiece model (the content of a `.model` file)."""
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._newline = self._processor.piece_to_id("<0x0A>")
        if self._processor.id_to_piece(self._newline) != "<0x0A>":
            raise UserError("the SentencePiece model has no byte pieces; train it with byte_fallback")

    @classmethod
    def train(
        cls, texts: Iterable[str], config: SentencePieceConfig = SentencePieceConfig()
    ) -> "SentencePieceTokenizer":
        """Trains on `texts`; the same texts in the same order give the same model, byte for byte.

        Raises:
            UserError: no text at all, or `config.size` too small for the bytes and characters.
        """
        lines = [line for text in texts for line in text.split("\n") if line]
        if not lines:
            raise UserError("the text tokenizer's corpus is empty; give it at least one line")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=config.kind,
                vocab_size=config.size,
                user_defined_symbols=["▁" + phrase.replace(" ", "▁") for phrase in config.phrases],
                hard_vocab_limit=False,
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=True,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                shuffle_input_sentence=False,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"text tokenizer of {config.size} pieces cannot be trained ({reason}); change size"
            ) from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a `.model` file, or the `text.model` of a folder.

        Raises:
            UserError: the file is missing or is not a SentencePiece model.
        """
        file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        try:
            return cls(file.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read text tokenizer {file} ({error.strerror})") from error
        except RuntimeError as error:
            raise UserError(f"{file} is not a SentencePiece model; train or copy it again") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes a `.model` file (or `text.model` in an existing folder), whole or not at all."""
        file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        write_bytes(file, self._model)

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, line in enumerate(text.encode("utf-8", "replace").decode().split("\n")):
            if number:
                ids.append(self._newline)
            ids.extend(self._processor.encode(line))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        lines: list[list[int]] = [[]]
        for piece in map(int, ids):
            if piece == self._newline:
                lines.append([])
            elif 0 <= piece < self.size:
                lines[-1].append(piece)
        return "\n".join(self._processor.decode(line) for line in lines)

    def untaught(self, text: str) -> list[str]:
        # Lines are parted by the newline's byte, which is the one byte that training shows.
        return [
            character
            for character in dict.fromkeys(text.encode("utf-8", "replace").decode())
            if character != "\n" and any(map(self._is_foreign, self._processor.encode(character)))
        ]

    def _is_foreign(self, piece: int) -> bool:
        return self._processor.is_byte(piece) or self._processor.is_unknown(piece)


class ByteLevelBPETokenizer:
    """The released model's byte-level BPE (Qwen2): NFC, Qwen2's word split, bytes, merges.

    Attributes:
        added: name -> id of the special tokens that the files list; `check` compares them with a `Vocabulary`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, added: dict[str, int]):
        """Wraps a tokenizer without added tokens; use `load`."""
        self._tokenizer = tokenizer
        self.added = added

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "ByteLevelBPETokenizer":
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt` (and `added_tokens.json` where there is one).

        Raises:
            UserError: the files are missing or broken.
        """
        folder = Path(directory)
        try:
            if (folder / "tokenizer.json").exists():
                return cls._from_json(json.loads((folder / "tokenizer.json").read_text("utf-8")))
            return cls._from_merges(folder)
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename} ({error.strerror}); a byte-level BPE folder holds tokenizer.json, "
                "or vocab.json and merges.txt"
            ) from error
        except UserError:
            raise
        except Exception as error:  # the tokenizers package raises plain Exception
            raise UserError(f"{folder} does not hold a readable byte-level BPE ({error}); copy it again") from error

    @classmethod
    def _from_json(cls, content: dict) -> "ByteLevelBPETokenizer":
        added = {entry["content"]: int(entry["id"]) for entry in content.get("added_tokens") or ()}
        pieces = content["model"]["vocab"]
        # Special tokens may also stand among the pieces; text must not reach them either way.
        content["model"]["vocab"] = {piece: number for piece, number in pieces.items() if piece not in added}
        content["added_tokens"] = []
        return cls(tokenizers.Tokenizer.from_str(json.dumps(content)), added)

    @classmethod
    def _from_merges(cls, folder: Path) -> "ByteLevelBPETokenizer":
        pieces = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        merges = [
            (left, right)
            for left, _, right in (line.partition(" ") for line in lines if line and line[:8] != "#version")
        ]
        extra = folder / "added_tokens.json"
        added = {name: int(i) for name, i in json.loads(extra.read_text("utf-8")).items()} if extra.exists() else {}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=merges))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return cls(tokenizer, added)

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        size = self.size
        return self._tokenizer.decode([int(i) for i in ids if 0 <= i < size], skip_special_tokens=False)

    def untaught(self, text: str) -> list[str]:
        """None: its pieces are made of bytes that the released model has all seen."""
        return []

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuses a vocabulary that gives the text another size, or a listed special token another id.

        Raises:
            UserError: naming the first disagreement.
        """
        if self.size != vocabulary.text_size:
            raise UserError(f"text tokenizer has {self.size} pieces, the vocabulary expects {vocabulary.text_size}")
        known = vocabulary.special_ids
        for name, number in self.added.items():
            if name in known and known[name] != number:
                raise UserError(
                    f"special token {name!r} is {number} in the tokenizer files, {known[name]} in the vocabulary"
                )


def load(path: str | os.PathLike) -> SentencePieceTokenizer | ByteLevelBPETokenizer:
    """The text tokenizer at `path`: SentencePiece for a `.model` file or its folder, byte-level BPE otherwise."""
    place = Path(path)
    if place.suffix == ".model" or (place / MODEL_FILE).exists():
        return SentencePieceTokenizer.load(place)
    return ByteLevelBPETokenizer.load(place)
