"""What the exams of speech share: finding a layout, word errors, transcripts in the forms of other tools."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.benchmarks import files
from omnidiff_jax.evaluation.benchmark import Answered, Medium, Protocol, Scores
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.evaluation.transcripts import Edits, one_line, trn, word_edits

SPLIT = "test-clean"
# Files -> (name, text, recording) of each utterance.
Reader = Callable[[Sequence[Path]], Iterator[tuple[str, str, Medium]]]
_SPLITS = {"train", "dev", "validation", "test", "other"}
_WORDS = re.compile("[a-z]+")


def spoken(
    data: str, told: str, unpacked: Mapping[str, Reader], column: str, turn: int
) -> Iterator[tuple[str, str, Medium]]:
    """Name, text and recording of each utterance of test-clean, in the order of their names or of the file.

    Args:
        data: what `--data` says, and `told` what it can be, for messages.
        unpacked: pattern of the files of the unpacked corpus -> what reads them.
        column: of the text in parquet.
        turn: that is the text in JSON lines.

    Raises:
        UserError: none of the layouts is there, or one is damaged.
    """

    def parquet(paths: Sequence[Path]) -> Iterator[tuple[str, str, Medium]]:
        for row in files.parquet_rows(paths, ["audio"]):
            yield row.text("id"), row.text(column), row.medium("audio")

    def lines(paths: Sequence[Path]) -> Iterator[tuple[str, str, Medium]]:
        for path in paths:
            for number, line in files.json_lines(path):
                with files.told(f"{path}, line {number}", "messages of two turns and one path in audios"):
                    (audio,), text = map(str, line["audios"]), str(line["messages"][turn]["content"])
                yield Path(audio).stem, text, files.beside(path.parent, audio)

    place = files.folder(data, told)
    for pattern, reader in {**unpacked, "*.parquet": parquet, "*.jsonl": lines}.items():
        paths = of_test_clean(place, files.found(place, pattern)) if place.is_dir() else [place] * place.match(pattern)
        if paths:
            yield from reader(paths)
            return
    raise files.unreadable(data, told)


def of_test_clean(place: Path, paths: Sequence[Path]) -> list[Path]:
    """Of the files of a download those of test-clean: `test-clean/…`, `clean/test-…`, `all/test.clean/…`.

    The first folder of it alone, where the split is there twice. What names no split at all is taken for the split.
    """
    inside = {path: path.relative_to(place) for path in paths}
    words = {path: set(_WORDS.findall(str(inside[path]).lower())) for path in paths}
    above = set(_WORDS.findall(place.name.lower()))
    chosen = [path for path in paths if {"test", "clean"} <= words[path] | above and "other" not in words[path]]
    if chosen:
        top = inside[chosen[0]].parts[0] if len(inside[chosen[0]].parts) > 1 else ""
        return [path for path in chosen if not top or inside[path].parts[0] == top]
    if any(words[path] & _SPLITS for path in paths):
        return [path for path in paths if words[path] & _SPLITS == {"test"}]
    return list(paths)


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


def scored(one: Answered, protocol: Protocol) -> str:
    """What is scored of an answer; the released script takes hyphens out of recognised text before."""
    said = one.said(protocol)
    return said.replace("-", "") if protocol.settings.get("hyphens") == "dropped" else said


def transcript_exports(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str]:
    """Reference and hypothesis as sclite reads them and as the released script writes them; errors by utterance."""
    rule = Normaliser.named(protocol.normaliser, "normaliser")()
    said = [scored(one, protocol) for one in answered]
    right = [str(one.item.truth["answer"]) for one in answered]
    names = [re.sub(r"[\s()]+", "_", one.item.name) for one in answered]
    written = {side: [rule.written(text) for text in texts] for side, texts in (("ref", right), ("hyp", said))}
    rows = ["name\twords\tsubstitutions\tdeletions\tinsertions\n"]
    for name, one in zip(names, word_edits(right, said, rule), strict=True):
        rows.append(f"{name}\t{one.words}\t{one.substitutions}\t{one.deletions}\t{one.insertions}\n")
    numbered = {
        f"released_{side}.txt": "".join(f"{i} {one_line(text)}\n" for i, text in enumerate(texts))
        for side, texts in written.items()
    }
    both = json.dumps(list(zip(written["hyp"], written["ref"], strict=True)), indent=4) + "\n"
    transcripts = {"ref.trn": trn(right, names), "hyp.trn": trn(said, names)}
    return transcripts | numbered | {"released_hyp_ref.json": both, "utterances.tsv": "".join(rows)}
