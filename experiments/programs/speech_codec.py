"""The training programs of the speech tokenizer and decoder over the Scenes world's answering voice."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.tasks import make_record
from experiments.programs.run import Run, tokenizer_run
from experiments.programs.tokenizers import tokenizer_folder
from omnidiff_jax.config import build
from omnidiff_jax.evaluation.wer import edit_distance, normalize
from omnidiff_jax.records import Waveform
from omnidiff_jax.tokenizers.speech import SpeechTokenizer
from omnidiff_jax.training.tokenizers.speech_codec import SpeechCodecProgram, SpeechCodecTraining, Utterances
from omnidiff_jax.training.tokenizers.speech_decoder import SpeechDecoderProgram, SpeechDecoderTraining


def answers(split: str, joined: int = 1) -> Utterances:
    """Index -> what the answering voice says in text-to-speech records: `joined` of them, one after the other."""

    def utterance(index: int) -> tuple[Waveform, str]:
        records = [make_record("tts", joined * index + i, split) for i in range(joined)]
        samples = np.concatenate([record.audios[0].samples for record in records])
        return Waveform(samples, records[0].audios[0].rate), " ".join(record.meta["spoken"] for record in records)

    return utterance


def word_errors(speech: Waveform, text: str) -> tuple[int, int]:
    """Words that pocketsphinx gets wrong in speech, and words of its text."""
    words = normalize(text).split()
    return edit_distance(words, normalize(listen(speech)).split()), len(words)


def speech_tokenizer_run(config: ConfigDict, workdir: Path) -> Run:
    """The run of `experiments/configs/tokenizers/speech_tokenizer.py`; validation is on the test split."""
    given = config.training.to_dict() | {"batch_size": config.batch_size}
    given["model"] |= {"dtype": config.dtype}
    training = build(SpeechCodecTraining, given, "config.training")
    return tokenizer_run(config, SpeechCodecProgram(training, answers("train"), answers("test")))


def speech_decoder_run(config: ConfigDict, workdir: Path) -> Run:
    """The run of `experiments/configs/tokenizers/speech_decoder.py`; validation is on the test split."""
    given = config.training.to_dict() | {"batch_size": config.batch_size}
    given["model"]["flow"] |= {"dtype": config.dtype}
    training = build(SpeechDecoderTraining, given, "config.training")
    tokenizer = SpeechTokenizer.load(tokenizer_folder(config.speech_tokenizer, "speech_tokenizer"))
    # Single answers would leave half of the rows of a batch empty.
    program = SpeechDecoderProgram(training, tokenizer, answers("train", joined=3), answers("test"), word_errors)
    return tokenizer_run(config, program)
