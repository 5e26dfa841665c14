"""Made-up samples with the lengths of the real mixture: a few long ones, many short ones."""

import dataclasses

import numpy as np

from omnidiff_jax.batch import Batch
from omnidiff_jax.data.assemble import Sample, assemble
from omnidiff_jax.data.packing import Packer, PackingConfig
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.speech_frames import RELEASED_SPEECH, SpeechLayout
from omnidiff_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task's samples.

    Attributes:
        name: of the task.
        share: of the samples.
        fixed: tokens that every sample has, such as an image's codes.
        median, sigma: of the log-normal rest.
        heard: median frames of speech that the sample hears, 60 ms each; as spread as the rest.
    """

    name: str
    share: float
    fixed: int
    median: float
    sigma: float
    heard: float = 0.0


# After arXiv 2603.06577: 256 codes a drawn image, 1,024 a seen one, 12.5 speech codes a second; the rest is judgment.
LONG_TAILED = (
    Kind("text_qa", 0.30, 0, 180.0, 0.9),
    Kind("captioning", 0.10, 1024, 40.0, 0.6),
    Kind("t2i", 0.15, 256, 35.0, 0.6),
    Kind("vqa", 0.10, 1024, 120.0, 0.8),
    Kind("asr", 0.15, 0, 40.0, 0.6, heard=120.0),
    Kind("tts", 0.15, 0, 140.0, 0.8),
    Kind("spoken_qa", 0.05, 0, 350.0, 0.7, heard=70.0),
)


def long_tailed(
    count: int, vocabulary: Vocabulary, longest: int, speech: SpeechLayout | None = None, seed: int = 0
) -> list[EncodedExample]:
    """Samples of every kind of `LONG_TAILED`: random text ids, the second half of each sample to be predicted.

    Args:
        longest: tokens at which lengths are cut.
        speech: of the frames that are heard; None = nothing is heard, text stands in the released layout's place.
    """
    draw, layout = np.random.default_rng(seed), speech or RELEASED_SPEECH
    kinds = draw.choice(len(LONG_TAILED), count, p=[kind.share for kind in LONG_TAILED])
    examples = []
    for number, choice in enumerate(kinds):
        kind = LONG_TAILED[choice]
        heard = round(kind.heard * float(np.exp(kind.sigma * draw.normal())))
        heard = min(heard, longest // 2 - layout.slots(0))
        slots = layout.slots(heard) if heard else 0
        rest = max(4, round(kind.median * float(np.exp(kind.sigma * draw.normal()))))
        length = min(slots + kind.fixed + rest, longest)
        tokens = draw.integers(0, len(vocabulary.text) // 2, length).astype(np.int32)
        frames, counts = np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
        if speech is not None and heard:
            tokens[:slots] = vocabulary.context_audio
            frames = draw.standard_normal((heard, layout.width), np.float32)
            counts = np.array([heard], np.int32)
        targets = np.arange(length) >= slots + (length - slots) // 2
        examples.append(EncodedExample(number, kind.name, tokens, targets, frames, counts))
    return examples


def packed_batch(rows: int, config: PackingConfig, vocabulary: Vocabulary, seed: int = 0) -> Batch:
    """One full batch of packed rows [rows, L], numpy."""
    packer: Packer[Sample] = Packer(config)
    full: list[list[Sample]] = []
    number = 0
    groups = {kind.name: index for index, kind in enumerate(LONG_TAILED)}
    while len(full) < rows:
        for example in long_tailed(256, vocabulary, config.length, seed=seed + number):
            size = len(example.tokens)
            full += packer.add(Sample(example, 0, 0, size, 0, groups[example.task]), size, 0)
        number += 1
    return assemble(full[:rows], config, vocabulary)
