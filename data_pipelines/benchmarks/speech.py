"""What the exams of speech share: finding a layout, word errors, transcripts in the forms of other tools."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.benchmarks import files
from omnidiff_jax.evaluation.benchmark import Answered, Item, Protocol, Scores
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.evaluation.transcripts import Edits, one_line, trn, word_edits

Reader = Callable[[Sequence[Path]], Iterator[Item]]


def read_by(place: Path, layouts: Mapping[str, Reader], data: str, told: str) -> Iterator[Item]:
    """Items of the first layout whose files are there.

    Args:
        place: a folder, or one file.
        layouts: pattern of file names -> reader.
        data: what `--data` said, and `told` what it can be, for messages.

    Raises:
        UserError: none is.
    """
    for pattern, reader in layouts.items():
        paths = files.found(place, pattern) if place.is_dir() else [place] * place.match(pattern)
        if paths:
            return reader(paths)
    raise files.unreadable(data, told)


def word_error_scores(references: Sequence[str], hypotheses: Sequence[str], normaliser: str) -> Scores:
    """Word error rate of a corpus in percent, and its kinds of errors as shares of the reference words."""
    found = word_edits(references, hypotheses, Normaliser.named(normaliser, "normaliser")())
    empty = sum(not one.words for one in found)
    return Scores(rates(found), notes={"empty references": empty} if empty else {})


def rates(found: Sequence[Edits]) -> dict[str, Ratios]:
    """Word error rate and its parts, in percent of the reference words."""
    words = [one.words for one in found]
    parts = {
        "word error rate": [one.errors for one in found],
        "substitutions": [one.substitutions for one in found],
        "deletions": [one.deletions for one in found],
        "insertions": [one.insertions for one in found],
    }
    return {name: Ratios.of(errors, words, 100.0) for name, errors in parts.items()}


def transcript_exports(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str]:
    """Reference and hypothesis as sclite reads them and as the released script writes them."""
    said = [one.said(protocol) for one in answered]
    right = [str(one.item.truth["answer"]) for one in answered]
    names = [one.item.name for one in answered]
    return {
        "ref.trn": trn(right, names),
        "hyp.trn": trn(said, names),
        "released_ref.txt": "".join(f"{i} {one_line(text)}\n" for i, text in enumerate(right)),
        "released_hyp.txt": "".join(f"{i} {one_line(text)}\n" for i, text in enumerate(said)),
    }
