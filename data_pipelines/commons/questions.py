"""What is asked about things, in writing and in speech, and what is right.

A sentence is made of pieces that may be spoken apart: there are few that every voice says, and names of things, so
that a few thousand clips make many sentences.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from data_pipelines.commons.things import Family, Thing

T = TypeVar("T")
NUMBERS = ("one", "two", "three", "four", "five")
OR = "or"
WHAT, KIND, ANIMAL = "what is this", "what kind of thing is this", "is this an animal"
COUNT = "how many people are there"
IS_THIS = "is this"
WHICH = "which is an animal,"
# Of one, and of many.
KIND_OF, IS, AN_ANIMAL = ("what kind of thing is", "what kind of thing are"), ("is", "are"), ("an animal", "animals")
DEFINED = "what is this:"
DRAWING = ("draw", "please draw", "show me", "a picture of")
THIS_IS = "this is"
# What every voice that asks says.
ASKED = (WHAT, KIND, ANIMAL, COUNT, IS_THIS, OR, WHICH, *KIND_OF, *IS, *AN_ANIMAL, *DRAWING)

SEEN_KINDS = {"name": 3.0, "category": 2.5, "animal": 1.5, "which": 2.0, "count": 1.0}
READ_KINDS = {"category": 3.0, "animal": 1.5, "which": 1.5, "definition": 4.0}
HEARD_KINDS = {"category": 3.0, "animal": 1.5, "which": 1.5}


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words in pieces.

    Attributes:
        pieces: each can be spoken alone.
        mark: at the end, in writing.
    """

    pieces: tuple[str, ...]
    mark: str = ""

    @property
    def said(self) -> str:
        return " ".join(self.pieces)

    @property
    def text(self) -> str:
        return self.said + self.mark


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        kind: of the question.
        sentence: that asks.
        answer: as it is given.
        accepted: all that is right; the answer is one of them.
        shown: what the picture shows, or what the question is about.
    """

    kind: str
    sentence: Sentence
    answer: str
    accepted: tuple[str, ...]
    shown: Thing | Family


@dataclasses.dataclass(frozen=True)
class Pool:
    """What may be asked about.

    Attributes:
        things: that are shown.
        named: that the question may name.
        families: to be counted.
    """

    things: Sequence[Thing]
    named: Sequence[Thing]
    families: Sequence[Family] = ()


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def pick_kind(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    shares = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]


def seen_question(rng: np.random.Generator, pool: Pool) -> Question:
    """A question about a picture."""
    kind = pick_kind(rng, SEEN_KINDS)
    if kind == "count" and pool.families:
        family = pick(rng, pool.families)
        return _asked(kind, (COUNT,), NUMBERS[family.people - 1], family)
    if kind == "which" and len(pool.named) > 1:
        thing = pick(rng, pool.named)
        names = _in_any_order(rng, thing, _other(rng, thing, pool.named))
        return _named(kind, (IS_THIS, names[0], OR, names[1]), thing)
    if kind == "animal":
        thing = _animal_or_not(rng, pool.things)
        return _asked(kind, (ANIMAL,), "yes" if thing.is_animal else "no", thing)
    thing = pick(rng, pool.things)
    return _asked(kind, (KIND,), thing.category, thing) if kind == "category" else _named("name", (WHAT,), thing)


def told_question(rng: np.random.Generator, named: Sequence[Thing], kinds: Mapping[str, float]) -> Question:
    """A question that words alone answer.

    Args:
        rng: a stream.
        named: things that it may be about.
        kinds: weights of READ_KINDS or HEARD_KINDS.
    """
    kind = pick_kind(rng, kinds)
    described = [thing for thing in named if thing.description]
    if kind == "definition" and described:
        thing = pick(rng, described)
        return _named(kind, (DEFINED, thing.description), thing)
    if kind == "animal":
        thing = _animal_or_not(rng, named)
        return _asked(
            kind, (IS[thing.many], thing.one, AN_ANIMAL[thing.many]), "yes" if thing.is_animal else "no", thing
        )
    animals, others = _parted(named)
    if kind == "which" and animals and others:
        thing = pick(rng, animals)
        names = _in_any_order(rng, thing, pick(rng, others))
        return _named(kind, (WHICH, names[0], OR, names[1]), thing)
    thing = pick(rng, named)
    return _asked("category", (KIND_OF[thing.many], thing.one), thing.category, thing)


def _asked(kind: str, pieces: tuple[str, ...], answer: str, shown: Thing | Family) -> Question:
    return Question(kind, Sentence(pieces, "?"), answer, (answer,), shown)


def _named(kind: str, pieces: tuple[str, ...], thing: Thing) -> Question:
    return Question(kind, Sentence(pieces, "?"), thing.one, accepted_names(thing), thing)


def accepted_names(thing: Thing) -> tuple[str, ...]:
    """What it may be called, with and without an article."""
    return (thing.one, thing.name, *thing.synonyms)


def _parted(things: Sequence[Thing]) -> tuple[list[Thing], list[Thing]]:
    return [thing for thing in things if thing.is_animal], [thing for thing in things if not thing.is_animal]


def _animal_or_not(rng: np.random.Generator, things: Sequence[Thing]) -> Thing:
    """As often an animal as not."""
    halves = [half for half in _parted(things) if half]
    return pick(rng, halves[int(rng.integers(len(halves)))])


def _other(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> Thing:
    """Another thing, half of the time of the same kind."""
    others = [one for one in things if one is not thing]
    near = [one for one in others if one.category == thing.category]
    return pick(rng, near if near and rng.random() < 0.5 else others)


def _in_any_order(rng: np.random.Generator, one: Thing, other: Thing) -> tuple[str, str]:
    return (one.one, other.one) if rng.random() < 0.5 else (other.one, one.one)
