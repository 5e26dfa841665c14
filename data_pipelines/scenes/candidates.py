"""Candidates for SDVI as a web-scale set would hold them: good questions among sums, programs, quizzes and essays."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_pipelines.scenes.language import EVEN, Question, caption, draw_question
from data_pipelines.scenes.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, Scene

# How often each sort of candidate occurs.
SORTS = {"open": 0.66, "choice": 0.16, "mathematics": 0.06, "programming": 0.06, "essay": 0.06}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A visual question and its answer in writing, fit for speaking or not; `sort` is a key of SORTS."""

    question: str
    answer: str
    sort: str


def draw_candidate(scene: Scene, rng: np.random.Generator, weights: Mapping[str, float] = EVEN) -> Candidate:
    """A candidate about the scene; `weights` as in `draw_question`."""
    sort = str(rng.choice(list(SORTS), p=list(SORTS.values())))
    question = draw_question(scene, rng, weights)
    if sort == "choice":
        return _choice(question, rng)
    thing = scene.objects[rng.integers(len(scene.objects))]
    first, second = (int(number) for number in rng.integers(2, 10, 2))
    if sort == "mathematics":
        text = (
            f"the {thing.shape} is {first} cm wide, what is {first} * {second}",
            f"solve for x: {first}x = {first * second}, where x is the number of {thing.color} objects",
            f"calculate the perimeter of the {thing.shape}",
        )[rng.integers(3)]
        return Candidate(text, str(first * second), sort)
    if sort == "programming":
        text = (
            f"write a Python function that draws the {thing.shape}",
            f"what does this print\n```\ncolor = '{thing.color}'\nprint(color)\n```",
            f"show the HTML that centers the {thing.kind}",
        )[rng.integers(3)]
        return Candidate(text, f"def draw():\n    return '{thing.kind}'", sort)
    if sort == "essay":
        sentence = f"The picture shows {caption(scene)}, and there is nothing else to be seen in it."
        return Candidate("describe the picture at length", " ".join([sentence] * 8), sort)
    return Candidate(question.text, question.phrase, sort)


def _choice(question: Question, rng: np.random.Generator) -> Candidate:
    """The question with its answer among wrong ones, answered by a letter."""
    head, word = question.phrase.rpartition(question.answer)[:2]
    groups = (COLORS, SHAPES, PLACES, BACKGROUNDS, ("one", "two", "three"), ("yes", "no"))
    same = next((group for group in groups if word in group), None)
    if same is None or question.kind == "count":  # "a red circle", "two objects": the wrong ones are whole phrases
        phrases = [phrase for phrase in ("nothing", "one object", "two objects") if phrase != question.phrase]
    else:
        phrases = [head + other for other in same if other != word]
    wrong = [phrases[i] for i in rng.permutation(len(phrases))[:3]]
    options = [question.phrase, *wrong]
    order = rng.permutation(len(options))
    lines = [f"{'ABCD'[place]}. {options[i]}" for place, i in enumerate(order)]
    letter = "ABCD"[list(order).index(0)]
    text = "\n".join([question.text, *lines, "Answer with the option's letter from the given choices directly."])
    return Candidate(text, letter, "choice")
