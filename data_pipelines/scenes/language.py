"""What is said about scenes: captions, questions and answers, general knowledge, the parser of captions."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Colour and shape as they are said; train and test name only KINDS, neither showing nor mentioning the held-out ones.
HELD_OUT_KINDS = frozenset(f"{color} {shape}" for color, shape in HELD_OUT_PAIRS)
KINDS = frozenset(f"{color} {shape}" for color in COLORS for shape in SHAPES) - HELD_OUT_KINDS
QUESTION_KINDS = ("color", "shape", "where", "count", "what", "exists", "background")
EVEN = dict.fromkeys(QUESTION_KINDS, 1.0)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Attributes:
      kind: one of QUESTION_KINDS, or "knowledge".
      text: the question, without a question mark, e.g. "what color is the circle".
      answer: one or two words, e.g. "red".
      phrase: the answer as it is spoken, e.g. "it is red".
    """

    kind: str
    text: str
    answer: str
    phrase: str


def caption(scene: Scene, background: bool = True) -> str:
    """The canonical caption: "small red circle top left, big blue square bottom right, on white"."""
    parts = [str(thing) for thing in scene.objects]
    return ", ".join(parts + [f"on {scene.background}"] if background else parts)


def with_article(kind: str) -> str:
    """ "an orange", "a red circle"."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [thing for thing in scene.objects if values.count(getattr(thing, attribute)) == 1]


def questions(scene: Scene) -> dict[str, list[Question]]:
    """Every unambiguous question about the scene, by kind; a kind may have none."""
    found: dict[str, list[Question]] = {kind: [] for kind in QUESTION_KINDS}

    def add(kind: str, text: str, answer: str, phrase: str) -> None:
        found[kind].append(Question(kind, text, answer, phrase))

    for thing in _unique(scene, "shape"):
        add("color", f"what color is the {thing.shape}", thing.color, f"it is {thing.color}")
        add("where", f"where is the {thing.shape}", thing.place, f"it is {thing.place}")
    for thing in _unique(scene, "color"):
        add("shape", f"what shape is {thing.color}", thing.shape, f"it is a {thing.shape}")
    count = NUMBERS[len(scene.objects)]
    add("count", "how many objects", count, f"{count} object" if count == "one" else f"{count} objects")
    for place in PLACES:
        thing_there = scene.at(place)
        if thing_there is None:
            add("what", f"what is {place}", "nothing", "nothing")
        else:
            add("what", f"what is {place}", thing_there.kind, with_article(thing_there.kind))
    kinds = {thing.kind for thing in scene.objects}
    for kind in sorted(kinds | KINDS):
        answer = "yes" if kind in kinds else "no"
        add("exists", f"is there {with_article(kind)}", answer, answer)
    add("background", "what is the background", scene.background, f"it is {scene.background}")
    return found


def draw_question(scene: Scene, rng: np.random.Generator, weights: Mapping[str, float] = EVEN) -> Question:
    """A question about the scene: "yes" as likely as "no", one place in four empty.

    Args:
      scene: what is asked about.
      rng: of the choice.
      weights: how often each kind is asked, where the scene has a question of it.
    """
    by_kind = {kind: group for kind, group in questions(scene).items() if weights.get(kind) and group}
    shares = np.array([weights[kind] for kind in by_kind])
    kind = list(by_kind)[rng.choice(len(by_kind), p=shares / shares.sum())]
    group = by_kind[kind]
    if kind == "exists":
        wanted = "yes" if rng.random() < 0.5 else "no"
        group = [question for question in group if question.answer == wanted]
        if wanted == "no":  # half of them about a shape that is there in another colour: the harder case
            shapes = {thing.shape for thing in scene.objects}
            near = [question for question in group if question.text.split()[-1] in shapes]
            group = near if near and rng.random() < 0.5 else group
    elif kind == "what":
        empty = rng.random() < 0.25
        group = [question for question in group if (question.answer == "nothing") == empty]
    return group[rng.integers(len(group))]


def _knowledge(text: str, answer: str, phrase: str | None = None) -> Question:
    return Question("knowledge", text, answer, phrase or f"it is {answer}")


# General knowledge: every answer is made of the same few words as the answers about scenes.
KNOWLEDGE = (
    _knowledge("how many sides has a triangle", "three", "three sides"),
    _knowledge("how many sides has a square", "four", "four sides"),
    _knowledge("how many legs has a dog", "four", "four legs"),
    _knowledge("how many legs has a spider", "eight", "eight legs"),
    _knowledge("how many fingers has a hand", "five", "five fingers"),
    _knowledge("how many eyes has a cat", "two", "two eyes"),
    _knowledge("how many days has a week", "seven", "seven days"),
    _knowledge("how many wheels has a car", "four", "four wheels"),
    _knowledge("what color is grass", "green"),
    _knowledge("what color is the sky", "blue"),
    _knowledge("what color is snow", "white"),
    _knowledge("what color is coal", "black"),
    _knowledge("what color is a lemon", "yellow"),
    _knowledge("what color is blood", "red"),
    _knowledge("what color is an elephant", "gray"),
    _knowledge("what shape is a wheel", "circle", "it is a circle"),
    _knowledge("what shape is a pizza", "circle", "it is a circle"),
    _knowledge("what shape is a chess board", "square", "it is a square"),
    _knowledge("what do red and yellow make", "orange", "they make orange"),
    _knowledge("what do red and blue make", "purple", "they make purple"),
    _knowledge("what do blue and yellow make", "green", "they make green"),
    _knowledge("what do black and white make", "gray", "they make gray"),
    *(_knowledge(f"what comes after {NUMBERS[n]}", NUMBERS[n + 1]) for n in range(1, 10)),
)

_OBJECT = re.compile(
    rf"(?P<size>{'|'.join(SIZES)}) (?P<color>{'|'.join(COLORS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) (?P<place>{'|'.join(PLACES)})"
)
_BACKGROUND = re.compile(rf"on ({'|'.join(BACKGROUNDS)})")


def _thing(match: re.Match[str]) -> Thing:
    return Thing(match["size"], match["color"], match["shape"], match["place"])


def parse_caption(text: str) -> Scene | None:
    """The scene that a caption describes (jitter 0), or None if it is not a caption.

    Case, surplus spaces, commas and full stops do not matter, so that transcribed speech parses too; the order of
    the objects does not matter either. A caption without a background gives background "". Two objects in one
    place, none, or more than three are not a caption.
    """
    rest = " ".join(text.lower().replace(",", " ").replace(".", " ").split())
    things: dict[str, Thing] = {}
    while match := _OBJECT.match(rest):
        thing = _thing(match)
        if thing.place in things:
            return None
        things[thing.place] = thing
        rest = rest[match.end() :].lstrip()
    background = _BACKGROUND.fullmatch(rest)
    if not 1 <= len(things) <= 3 or (rest and not background):
        return None
    ordered = tuple(things[place] for place in PLACES if place in things)
    return Scene(ordered, background.group(1) if background else "")


def answer_phrases() -> tuple[str, ...]:
    """Every phrase that can be a spoken answer in train and test, sorted."""
    phrases = {"yes", "no", "nothing", "one object", "two objects", "three objects"}
    phrases |= {question.phrase for question in KNOWLEDGE}
    phrases |= {f"it is {word}" for word in COLORS + PLACES + BACKGROUNDS}
    phrases |= {f"it is a {shape}" for shape in SHAPES}
    return tuple(sorted(phrases | {with_article(kind) for kind in KINDS}))


def held_out_phrases() -> tuple[str, ...]:
    """The spoken answers that occur in the compositional split alone, sorted."""
    return tuple(sorted(with_article(kind) for kind in HELD_OUT_KINDS))


def answer_words() -> tuple[str, ...]:
    """Every word that is ever spoken in the answering voice, sorted."""
    words = {word for phrase in answer_phrases() for word in phrase.split()}
    words |= {word for name in SIZES + COLORS + SHAPES + PLACES + BACKGROUNDS for word in name.split()}
    return tuple(sorted(words | {"on"}))


def heard_words() -> tuple[str, ...]:
    """Every word that is ever spoken in a heard voice, sorted."""
    words = set(answer_words())
    for question in KNOWLEDGE:
        words |= set(question.text.split())
    scene = Scene((Thing(SIZES[0], COLORS[0], SHAPES[0], PLACES[0]),), BACKGROUNDS[0])
    for group in questions(scene).values():
        words |= {word for question in group for word in question.text.split()}
    return tuple(sorted(words))
