"""LibriTTS test-clean: what a judge hears in what was spoken, by word error rate."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.benchmarks import files
from data_pipelines.benchmarks.speech import SPLIT, rates, spoken, transcript_exports
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Medium, Protocol, Published, Scores
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.evaluation.transcripts import word_edits

LAYOUTS = (
    "a folder of OpenSLR 60 (SPK/CH/NAME.wav, .normalized.txt, .original.txt), parquet files with text_normalized, "
    "audio and id, or JSON lines with messages and audios"
)
_ASKED = "Convert the text to speech.\n"


def read(data: str, protocol: Protocol) -> Iterator[Item]:
    """Sentences, in the order of their names or of the file; the recording is kept for the judge's ceiling.

    Raises:
        UserError: none of the layouts is there.
    """
    column = protocol.settings["text"]
    layouts = {f"*.{column}.txt": _unpacked}
    for name, told, recording in spoken(data, LAYOUTS, layouts, f"text_{column}", turn=0):
        text, speaker = " ".join(told.replace(_ASKED, "").split()), name.split("_")[0]
        yield Item(SPLIT, name, "tts", text, truth={"answer": text}, cluster=speaker, reference=recording)


def _unpacked(paths: Sequence[Path]) -> Iterator[tuple[str, str, Medium]]:
    for path in paths:
        name = path.name.split(".")[0]
        text = " ".join(line for _, line in files.text_lines(path))
        yield name, text, files.beside(path.parent, f"{name}.wav")


def score(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """Word errors of what was heard: of all sentences, one without speech counting as not said, and as the released
    script does of those alone that have speech."""
    heard = [one.said(protocol) for one in answered]
    right = [str(one.item.truth["answer"]) for one in answered]
    spoken = [bool(one.answer.get("speech")) for one in answered]
    normaliser = Normaliser.named(protocol.normaliser, "normaliser")()
    found = word_edits(right, heard, normaliser)
    of_all = rates(found)
    kept = {"word error rate of what has speech": of_all["word error rate"].where(spoken)}
    numbers = kept | of_all if protocol.settings["silent"] == "left out" else of_all | kept
    return Scores(numbers, notes={"without speech": len(spoken) - sum(spoken)})


_WHISPER = Protocol(
    "Whisper's normaliser on both sides, every sentence counted",
    normaliser="whisper",
    judge="speech",
    settings={"text": "normalized", "silent": "counted"},
)

LIBRITTS = Benchmark(
    "LibriTTS test-clean, text to speech",
    LAYOUTS,
    "openslr.org/60 (test-clean.tar.gz) or mythicinfinity/libritts on Hugging Face; CC BY 4.0",
    {SPLIT: (4837,)},
    {
        "released": dataclasses.replace(
            _WHISPER,
            note="tools/evaluate_libritts.py of the released code: whisper-large-v3, WeTextProcessing; sentences "
            "without speech left out; which column of text it read is not known",
            normaliser="released_speech",
            settings={"text": "normalized", "silent": "left out"},
        ),
        "lmms_eval": _WHISPER,
    },
    read,
    score,
    transcript_exports,
    higher_is_better=False,
    published=(
        Published("Omni-Diffusion v1", "word error rate of what has speech", 3.07, "arXiv 2603.06577v1"),
        Published("Omni-Diffusion (ICML)", "word error rate of what has speech", 2.22, "ICML 2026 version"),
    ),
)
