"""Definitions of nouns from WordNet's files (wndb(5WN); Miller 1995, CACM 38(11))."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnidiff_jax.errors import UserError

# Numbers of WordNet's files by subject (lexnames(5WN)).
ACT, ANIMAL, ARTIFACT, BODY, COMMUNICATION, FOOD, LOCATION, OBJECT = "04", "05", "06", "08", "10", "13", "15", "17"
PHENOMENON, PLANT, POSSESSION, SUBSTANCE, SHAPE = "19", "20", "21", "27", "25"
_LONGEST, _SHORTEST = 12, 3  # words of a definition
_ASIDE = re.compile(r"\([^)]*\)|`[^']*'")
_CLAUSE = re.compile(r"[;:]| -- |, (?:which|who|as|e\.g\.|i\.e\.|usually|often|especially|typically|such as) ")


def definitions(folder: Path, wanted: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """The first clause of what WordNet says of each name, in lower case.

    Args:
        folder: `index.noun` and `data.noun` as WordNet 3.0 has them.
        wanted: name -> words for it, the best first, and the subjects that its sense may belong to.

    Returns:
        of the names that have one: of the first of their words with a sense of these subjects, the most frequent such
        sense. A clause that has one of the words in it, or is too short or too long, is none.

    Raises:
        UserError: a file is missing or not WordNet's.
    """
    words = {word.replace(" ", "_") for names, _ in wanted.values() for word in names}
    try:
        with open(folder / "index.noun", encoding="utf-8") as index:
            senses = dict(_entry(line) for line in index if line.partition(" ")[0] in words)
        with open(folder / "data.noun", "rb") as data:
            found = {}
            for name, (names, subjects) in wanted.items():
                offsets = (offset for word in names for offset in senses.get(word.replace(" ", "_"), ()))
                glosses = (gloss for subject, gloss in (_sense(data, o) for o in offsets) if subject in subjects)
                if clause := _clause(next(glosses, ""), names):
                    found[name] = clause
            return found
    except OSError as error:
        how = "get it by `omnidiff data fetch commons DIR --part=wordnet`"
        raise UserError(f"cannot read {error.filename} ({error.strerror}); {how}") from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"index.noun and data.noun in {folder} are not of one WordNet ({error}); fetch it again"
        ) from error


def _entry(line: str) -> tuple[str, list[int]]:
    """A line of the index: a word, and where its senses lie, the most frequent first."""
    lemma, _, count, *rest = line.split()
    return lemma, [int(offset) for offset in rest[-int(count) :]]


def _sense(data, offset: int) -> tuple[str, str]:
    """Subject and gloss of the sense at an offset."""
    data.seek(offset)
    line = data.readline(1 << 16).decode("utf-8")
    if int(line[:8]) != offset:
        raise ValueError(f"no sense at {offset}")
    return line[9:11], line.partition(" | ")[2].strip()


def _clause(gloss: str, names: Sequence[str]) -> str:
    first = _CLAUSE.split(_ASIDE.sub("", gloss))[0]
    clause = " ".join(first.replace('"', "").lower().split()).strip(" ,.")
    found = re.findall(r"[a-z'’-]+", clause)
    if not _SHORTEST <= len(found) <= _LONGEST or any(part in found for name in names for part in name.split()):
        return ""
    return clause
