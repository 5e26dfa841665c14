"""The text tokenizer's corpus and training; it has no gradient steps, so it is no `TrainProgram`."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.scenes.language import KNOWLEDGE, answer_phrases
from data_pipelines.scenes.tasks import make_record
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG
from omnidiff_jax.tasks.chat import ROLES
from omnidiff_jax.tasks.registry import task
from omnidiff_jax.tokenizers.text import SentencePieceConfig, SentencePieceTokenizer

# What is spoken is said in the words of these tasks, and of the phrases below; no speech needs to be made.
WRITTEN_TASKS = ("text_qa", "captioning", "vqa", "t2i")


def scenes_sentences(records: int) -> Iterator[str]:
    """Every fixed sentence of the Scenes world, then the text of `records` training records of each written task, and
    of as many whose requests are in plain words."""
    prompts = [task(name).user.partition("\n")[0] for name in ("asr", "tts")]
    systems = [task(name).system for name in ("spoken_qa", "s2i", "spoken_vqa")]
    fixed = (*ROLES, *prompts, *systems)
    for _ in range(records // 10):
        yield from fixed
        yield from answer_phrases()
        for question in KNOWLEDGE:
            yield from (question.text, question.answer, question.phrase)
    for name, index, plain in itertools.product(WRITTEN_TASKS, range(records), (0.0, 1.0)):
        for message in make_record(name, index, "train", plain).messages:
            yield message.content.replace(IMAGE_TAG, "").replace(AUDIO_TAG, "")


@dataclasses.dataclass(frozen=True)
class TextTokenizerRun:
    """The config of `experiments/configs/tokenizers/text.py`.

    Attributes:
        program: "text_tokenizer".
        records: Scenes records of each written task that the sentences are taken from.
        tokenizer: kind and size.
    """

    program: str = "text_tokenizer"
    records: int = 400
    tokenizer: SentencePieceConfig = SentencePieceConfig()

    def train(self, folder: str | os.PathLike[str]) -> SentencePieceTokenizer:
        """Counts pieces and leaves `text.model` in `folder`."""
        tokenizer = SentencePieceTokenizer.train(scenes_sentences(self.records), self.tokenizer)
        Path(folder).mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        return tokenizer
