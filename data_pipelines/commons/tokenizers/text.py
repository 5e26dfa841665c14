"""The text tokenizer's corpus over Commons: every name, kind and question, and what definitions say."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.commons.questions import ASKED, NUMBERS, THIS_IS
from data_pipelines.commons.tasks import SPOKEN, TASKS, make_record
from data_pipelines.commons.things import World, open_world
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG
from omnidiff_jax.tasks.chat import ROLES
from omnidiff_jax.tasks.registry import task
from omnidiff_jax.tokenizers.text import SentencePieceConfig, SentencePieceTokenizer

# Of a thing's name for one of its definition: names are said in every task.
_NAMES = 20


def commons_sentences(world: World, records: int) -> Iterator[str]:
    """Names and fixed sentences, then the text of `records` training records of each written task.

    A tokenizer knows every word, those of things that are never learned, too, as the released one does.
    """
    prompts = [task(name).user.partition("\n")[0] for name in ("asr", "tts")]
    systems = [task(name).system for name in ("spoken_qa", "s2i", "spoken_vqa")]
    for _ in range(_NAMES):
        yield from (*ROLES, *prompts, *systems, *ASKED, *NUMBERS, THIS_IS, "yes", "no", *world.categories)
        for thing in world.things:
            yield from (thing.name, thing.one)
    yield from (thing.description for thing in world.things if thing.description)
    for name in (name for name in TASKS if name not in SPOKEN):
        for index in range(records):
            for message in make_record(world, name, index, "train").messages:
                yield message.content.replace(IMAGE_TAG, "").replace(AUDIO_TAG, "")


@dataclasses.dataclass(frozen=True)
class CommonsTextTokenizerRun:
    """The config of `experiments/configs/tokenizers/commons_text.py`.

    Attributes:
        program: "commons_text_tokenizer".
        folder: that `omnidiff data fetch commons` wrote, with the parts google and wordnet.
        records: of each written task that sentences are taken from.
        tokenizer: kind and size.
    """

    program: str = "commons_text_tokenizer"
    folder: str = ""
    records: int = 400
    tokenizer: SentencePieceConfig = SentencePieceConfig()

    def train(self, folder: str | os.PathLike[str]) -> SentencePieceTokenizer:
        """Counts pieces and leaves `text.model` in `folder`."""
        sentences = commons_sentences(open_world(self.folder), self.records)
        tokenizer = SentencePieceTokenizer.train(sentences, self.tokenizer)
        Path(folder).mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        return tokenizer
