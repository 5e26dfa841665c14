"""LibriSpeech test-clean: what was recognised, by word error rate."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.benchmarks import files
from data_pipelines.benchmarks.speech import SPLIT, scored, spoken, transcript_exports, word_error_scores
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Medium, Protocol, Published, Scores

LAYOUTS = (
    "a folder of OpenSLR 12 (SPK/CH/SPK-CH.trans.txt beside SPK-CH-UTT.flac), parquet files with text, audio and id, "
    "or JSON lines with messages and audios"
)


def read(data: str, protocol: Protocol) -> Iterator[Item]:
    """Utterances, in the order of their names or of the file.

    Raises:
        UserError: none of the layouts is there.
    """
    for name, text, audio in spoken(data, LAYOUTS, {"*.trans.txt": _unpacked}, "text", turn=1):
        yield Item(SPLIT, name, "asr", audio=audio, truth={"answer": text}, cluster=name.split("-")[0])


def _unpacked(paths: Sequence[Path]) -> Iterator[tuple[str, str, Medium]]:
    for path in paths:
        for number, line in files.text_lines(path):
            name, _, text = line.strip().partition(" ")
            if not text:
                raise UserError(f"{path}, line {number}: must be `ID TEXT`")
            yield name, text, files.beside(path.parent, f"{name}.flac")


def score(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """Word errors of the text."""
    said = [scored(one, protocol) for one in answered]
    return word_error_scores([one.item.truth["answer"] for one in answered], said, protocol.normaliser)


_RELEASED = Protocol(
    "tools/evaluate_asr.py of the released code; its normaliser keeps punctuation inside words",
    normaliser="released",
    settings={"hyphens": "dropped"},
)

LIBRISPEECH = Benchmark(
    "LibriSpeech test-clean, speech to text",
    LAYOUTS,
    "openslr.org/12 (test-clean.tar.gz) or openslr/librispeech_asr on Hugging Face; CC BY 4.0",
    {SPLIT: (2620,)},
    {
        "released": _RELEASED,
        "paper": dataclasses.replace(
            _RELEASED, note="that the paper's number was made by the released script is likely"
        ),
        "lmms_eval": Protocol("Whisper's normaliser, as lmms-eval has it", normaliser="whisper"),
    },
    read,
    score,
    transcript_exports,
    higher_is_better=False,
    published=(
        Published("Omni-Diffusion v1", "word error rate", 7.05, "arXiv 2603.06577v1"),
        Published("Omni-Diffusion (ICML)", "word error rate", 6.69, "ICML 2026 version"),
        Published("Dynin-Omni", "word error rate", 2.1, "arXiv 2604.00007, its claim; normaliser not known"),
    ),
)
