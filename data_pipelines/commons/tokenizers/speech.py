"""The training programs of speech over Commons: natural voices, from clips that `omnidiff data speak` has spoken."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.commons.questions import ASKED
from data_pipelines.commons.speech import Clips, open_clips
from data_pipelines.commons.tasks import make_record
from data_pipelines.commons.things import World, open_world
from omnidiff_jax.config import free
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.named import open_judge
from omnidiff_jax.evaluation.normalisers import Whisper
from omnidiff_jax.evaluation.transcripts import word_edits
from omnidiff_jax.records import RejectedRecord, Waveform
from omnidiff_jax.tokenizers.text import SentencePieceConfig, SentencePieceTokenizer, TextTokenizer
from omnidiff_jax.training.tokenizers.runs import CodecRun, DecoderRun, HearingRun, SpokenRun, VocoderRun
from omnidiff_jax.training.tokenizers.spoken import Judge, Spoken, Utterances
from omnidiff_jax.words import normalize

# Records that are looked at for one that is there, so far apart that no two utterances share one, nor an exam.
_TRIED, _APART = 64, 1 << 25


def said(world: World, clips: Clips, name: str, splits: Sequence[str]) -> Utterances:
    """Index -> what is heard first in a record of a task, in plain words; records without all of their clips are left
    out for others.

    Args:
        world: whose things.
        clips: that are joined; what they do not hold is spoken, but for `Clips.kept`.
        name: of a task in which something is said.
        splits: taken in turn.

    Raises:
        UserError: when an utterance is asked for, and hardly a clip is there.
    """

    def utterance(index: int) -> tuple[Waveform, str]:
        for attempt in range(_TRIED):
            number = (index % _APART) + attempt * _APART
            try:
                record = make_record(world, name, number, splits[index % len(splits)], clips)
            except RejectedRecord:
                continue
            return record.audios[0], normalize(record.meta["heard" if "heard" in record.meta else "spoken"])
        raise UserError(
            f"of {_TRIED} sentences of {name} none has all of its clips in {world.folder}/clips; "
            f"run `omnidiff data speak {world.folder}`"
        )

    return utterance


def heard_pieces(world: World, config: SentencePieceConfig) -> SentencePieceTokenizer:
    """Pieces of all that is heard, counted over names and what stands beside them; those of things never learned are
    made of them."""
    names = [thing.one for thing in world.of(held_out=False)]
    return SentencePieceTokenizer.train((normalize(text) for text in (*ASKED, *names)), config)


def whisper_judge(folder: Path) -> Judge | None:
    """Words that the Whisper of Commons gets wrong, opened when it is first asked; None where there is none."""
    if not (folder / "whisper").is_dir():
        return None
    opened = functools.lru_cache(1)(lambda: open_judge(f"whisper:{folder / 'whisper'}", "speech"))

    def judge(speech: Waveform, text: str) -> tuple[int, int]:
        (edit,) = word_edits([text], [opened().hear(speech)], Whisper())
        return edit.errors, edit.words

    return judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CommonsRun(SpokenRun):
    """A run over a folder of Commons.

    Attributes:
        folder: that `omnidiff data fetch commons` wrote, with `clips` that `omnidiff data speak` has spoken.
    """

    folder: str = free("")

    def spoken(self) -> Spoken:
        """What the answering voice says: names alone, and after "this is"; held out are whole sentences, in turn of
        things that are learned and of others."""
        world, clips = open_world(self.folder), open_clips(f"{self.folder}/clips")
        learned = said(world, clips.kept(), "tts", ("train",))
        return Spoken(learned, said(world, clips, "tts", ("test", "concepts")), whisper_judge(world.folder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonsSpeechEncoderRun(_CommonsRun, HearingRun):
    """The config of `experiments/configs/tokenizers/commons_speech_encoder.py`.

    Attributes:
        pieces: that CTC predicts, of what is heard.
    """

    pieces: SentencePieceConfig = SentencePieceConfig()

    def text(self) -> TextTokenizer:
        return heard_pieces(open_world(self.folder), self.pieces)

    def spoken(self) -> Spoken:
        """Questions, requests and names; held out are whole sentences in voices never learned."""
        world, clips = open_world(self.folder), open_clips(f"{self.folder}/clips")
        return Spoken(said(world, clips.kept(), "asr", ("train",)), said(world, clips, "asr", ("test",)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonsSpeechTokenizerRun(_CommonsRun, CodecRun):
    """The config of `experiments/configs/tokenizers/commons_speech_tokenizer.py`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonsSpeechDecoderRun(_CommonsRun, DecoderRun):
    """The config of `experiments/configs/tokenizers/commons_speech_decoder.py`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonsVocoderRun(_CommonsRun, VocoderRun):
    """The config of `experiments/configs/tokenizers/commons_vocoder.py`."""
