"""LibriSpeech test-clean: what was recognised, by word error rate."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import files
from data_pipelines.benchmarks.speech import read_by, transcript_exports, word_error_scores
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Medium, Protocol, Published, Scores

SPLIT = "test-clean"
LAYOUTS = (
    "a folder of OpenSLR 12 (SPK/CH/SPK-CH.trans.txt beside SPK-CH-UTT.flac), parquet files with text, audio and id, "
    "or JSON lines with messages and audios"
)


def read(data: str, protocol: Protocol) -> Iterator[Item]:
    """Utterances, in the order of their names or of the file.

    Raises:
        UserError: none of the layouts is there.
    """
    place = files.folder(data, LAYOUTS)
    yield from read_by(place, {"*.trans.txt": _openslr, "*.parquet": _parquet, "*.jsonl": _lines}, data, LAYOUTS)


def _item(name: str, text: str, audio: Medium) -> Item:
    return Item(SPLIT, name, "asr", audio=audio, truth={"answer": text}, cluster=name.split("-")[0])


def _openslr(paths: Sequence[Path]) -> Iterator[Item]:
    inside = [path for path in paths if SPLIT in path.parts] or list(paths)
    for path in inside:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            if not text:
                raise UserError(f"{path}, line {number}: must be `ID TEXT`")
            yield _item(name, text, files.FileMedium(str(path.parent / f"{name}.flac")))


def _parquet(paths: Sequence[Path]) -> Iterator[Item]:
    for row in files.parquet_rows(paths, ["audio"]):
        yield _item(row.text("id"), row.text("text"), row.media["audio"])


def _lines(paths: Sequence[Path]) -> Iterator[Item]:
    for path in paths:
        for number, line in files.json_lines(path):
            answer, audio = _turn(line, f"{path}, line {number}")
            yield _item(Path(audio).stem, answer, files.beside(path.parent, audio))


def _turn(line: Any, where: str) -> tuple[str, str]:
    try:
        (audio,) = line["audios"]
        return str(line["messages"][1]["content"]), str(audio)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where}: must have messages of two turns and one path in audios") from error


def score(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """Word errors of the text; the released script takes hyphens out of it before."""
    hyphens = protocol.settings.get("hyphens") == "dropped"
    said = [one.text.replace("-", "") if hyphens else one.text for one in answered]
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
