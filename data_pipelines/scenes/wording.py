"""How a request is put: in the world's own grammar, or in plain words, as people type who do not know it.

Plain words come in any order, with articles, synonyms and asides, leave sizes, places, a colour or the background open,
and hold a mistyped letter now and then. Answers stay canonical.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_pipelines.scenes.language import Question, caption, with_article
from data_pipelines.scenes.scene import PLACES, Scene, Thing, split_of

Wanted = tuple[str, str, str, str]
"""Size, colour, shape and place of an object; "" where the request leaves one open."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A scene as a request puts it.

    Attributes:
      text: the request.
      wanted: what it says of each object, in the scene's order.
      order: places in `wanted`, as the request names them.
      background: that it names, or "".
    """

    text: str
    wanted: tuple[Wanted, ...]
    order: tuple[int, ...]
    background: str


def meets(scene: Scene, wanted: Sequence[Sequence[str]], background: str) -> bool:
    """Whether a scene's objects are those wanted, one for one, on the background wanted; "" is met by anything."""
    if len(scene.objects) != len(wanted) or (background and scene.background != background):
        return False
    if not wanted:
        return True
    first, rest = wanted[0], wanted[1:]
    for place, thing in enumerate(scene.objects):
        others = Scene(scene.objects[:place] + scene.objects[place + 1 :], scene.background)
        if is_wanted(thing, first) and meets(others, rest, ""):
            return True
    return False


def is_wanted(thing: Thing, wanted: Sequence[str]) -> bool:
    """Whether an object is what a request says of one."""
    shown = (thing.size, thing.color, thing.shape, thing.place)
    return all(not word or word == there for word, there in zip(wanted, shown, strict=True))


# What is drawn where a request leaves it open, the first that can be: objects come in the order they are named in.
_SIZES = ("big", "small")
_COLORS = ("green", "red", "blue", "yellow")
_BACKGROUND = "white"


def settled(scene: Scene, description: Description, split: str) -> tuple[Scene, Description]:
    """The scene that a request is answered with: what it leaves open is settled, always in the same way.

    The picture of an open request is any of many. A model that is asked for all of its codes at once would mix them,
    and each code alone is likeliest background.

    Args:
      scene: that `description` is of; objects keep their jitter.
      description: the request.
      split: that the settled scene must be of, too, as `split_of` has it.

    Returns:
      the settled scene, and the description with what is wanted in its order.
    """
    named = [description.wanted[index] for index in description.order]
    looks = (
        itertools.product((size,) if size else _SIZES, (color,) if color else _COLORS, (shape,))
        for size, color, shape, _ in named
    )
    for things in itertools.product(*looks):
        for places in itertools.permutations(PLACES, len(named)):
            if any(asked not in ("", place) for place, (*_, asked) in zip(places, named, strict=True)):
                continue
            found = [
                dataclasses.replace(scene.objects[index], size=size, color=color, shape=shape, place=place)
                for index, (size, color, shape), place in zip(description.order, things, places, strict=True)
            ]
            order = sorted(range(len(found)), key=lambda number: PLACES.index(found[number].place))
            answer = Scene(tuple(found[number] for number in order), description.background or _BACKGROUND)
            if split_of(answer) == split:
                wanted = tuple(named[number] for number in order)
                told = dataclasses.replace(
                    description, wanted=wanted, order=tuple(order.index(n) for n in range(len(order)))
                )
                return answer, told
    return scene, description


class Wording(Protocol):
    """A way to put requests."""

    def scene(self, scene: Scene, whole: bool = False) -> Description:
        """A scene to be drawn; `whole` leaves nothing open, as one that is asked about must not."""
        ...

    def question(self, question: Question) -> str: ...

    def captioning(self, default: str) -> str:
        """The request for a caption."""
        ...


class Canonical:
    """The world's own grammar."""

    def scene(self, scene: Scene, whole: bool = False) -> Description:
        wanted = tuple((thing.size, thing.color, thing.shape, thing.place) for thing in scene.objects)
        return Description(caption(scene), wanted, tuple(range(len(wanted))), scene.background)

    def question(self, question: Question) -> str:
        return question.text

    def captioning(self, default: str) -> str:
        return default


SYNONYMS = {
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large", "huge"),
    "circle": ("circle", "circle", "disc", "round shape", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
}
_IN_PLACE = (
    "{place}",
    "in the {place}",
    "at the {place}",
    "at {place}",
    "in the {place} corner",
    "in the {other}",
    "{other}",
    "in the {other} corner",
)
_ON = ("on {color}", "on a {color} background", "{color} background", "with a {color} background", "on {color} ground")
_OPENINGS = (
    "", "", "", "", "draw ", "draw me ", "paint ", "please draw ", "show me ", "a picture of ", "an image with ",
    "picture of ", "make a picture with ", "i want ", "there is ", "could you draw ",
)  # fmt: skip
_JOINTS = (", ", " and ", ", and ", "; ", " plus ", ". ")
_CAPTIONING = (
    "Describe the image.", "describe the picture", "what do you see?", "what is in the picture?", "caption this image",
    "tell me what the image shows", "what does this picture show", "Please describe this picture.",
)  # fmt: skip
_QUESTIONS = {
    "color": (
        "what color is the {x}", "which color is the {x}", "what colour is the {x}", "which color does the {x} have",
        "what is the color of the {x}", "color of the {x}", "tell me the color of the {x}",
    ),
    "where": (
        "where is the {x}", "where's the {x}", "where do you see the {x}", "in which corner is the {x}",
        "where is the {x} located", "find the {x}", "which place is the {x} at",
    ),
    "shape": (
        "what shape is {x}", "which shape is {x}", "what is the shape of the {x} object", "what shape is the {x} one",
        "shape of the {x} thing", "what shape does the {x} object have",
    ),
    "count": (
        "how many objects", "how many objects are there", "how many things do you see", "count the objects",
        "how many shapes are in the picture", "number of objects",
    ),
    "what": (
        "what is {x}", "what is {in_x}", "what's {in_x}", "what do you see {in_x}", "which object is {in_x}",
        "tell me what is {in_x}",
    ),
    "exists": (
        "is there {x}", "do you see {x}", "can you see {x}", "is {x} there", "does the picture have {x}",
        "is there {x} in the picture",
    ),
    "background": (
        "what is the background", "what color is the background", "which color is the background",
        "what is the background color", "background color", "what colour has the background",
    ),
}  # fmt: skip


class Plain:
    """Plain words, drawn at random."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng

    def scene(self, scene: Scene, whole: bool = False) -> Description:
        rng, parts = self._rng, []
        wanted: dict[int, Wanted] = {}
        names = {  # what the whole request speaks of
            "size": whole or rng.random() < 0.7,
            "place": whole or rng.random() < 0.7,
            "color": whole or rng.random() < 0.95,
            "background": whole or rng.random() < 0.6,
        }
        order = tuple(map(int, rng.permutation(len(scene.objects))))
        for index in order:
            thing = scene.objects[index]
            said = {name: whole or (names[name] and rng.random() < 0.95) for name in ("size", "color", "place")}
            parts.append(self._thing(thing, said))
            wanted[index] = (
                thing.size if said["size"] else "",
                thing.color if said["color"] else "",
                thing.shape,
                thing.place if said["place"] else "",
            )
        text = self._one(_OPENINGS if not whole else ("", "", "there is ", "the picture shows ")) + parts[0]
        joint = self._one(_JOINTS)
        for part in parts[1:]:
            text += joint + part
        if names["background"]:
            text += self._one((", ", " ", " ")) + self._one(_ON).format(color=scene.background)
        background = scene.background if names["background"] else ""
        said_of_each = tuple(wanted[index] for index in sorted(wanted))
        return Description(self._typed(text, ending=not whole), said_of_each, order, background)

    def question(self, question: Question) -> str:
        if question.kind not in _QUESTIONS:
            return self._typed(question.text)
        subject = question.text.removeprefix("is there ").removeprefix("what is ")
        if question.kind in ("color", "where", "shape"):
            subject = question.text.split()[-1]
        template = self._one(_QUESTIONS[question.kind])
        word = self._one(SYNONYMS.get(subject, (subject,)))
        in_place = self._place(subject) if question.kind == "what" else ""
        return self._typed(template.format(x=word, in_x=in_place), mark="?")

    def captioning(self, default: str) -> str:
        return self._one(_CAPTIONING)

    def _one(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _place(self, place: str) -> str:
        vertical, horizontal = place.split()
        other = f"{'upper' if vertical == 'top' else 'lower'} {horizontal}"
        return self._one(_IN_PLACE).format(place=place, other=other)

    def _thing(self, thing: Thing, said: dict[str, bool]) -> str:
        words = [self._one(SYNONYMS[thing.size])] if said["size"] else []
        words += [thing.color] if said["color"] else []
        name = " ".join([*words, self._one(SYNONYMS[thing.shape])])
        if self._rng.random() < 0.6:
            name = with_article(name)
        if not said["place"]:
            return name
        place = self._place(thing.place)
        return f"{place} {name}" if self._rng.random() < 0.15 else f"{name} {place}"

    def _typed(self, text: str, mark: str = ".", ending: bool = True) -> str:
        """The text as fingers leave it."""
        rng = self._rng
        if rng.random() < 0.12:
            text = _mistyped(text, rng)
        if rng.random() < 0.3:
            text = text[:1].upper() + text[1:]
        return text + mark if ending and rng.random() < 0.4 else text


def _mistyped(text: str, rng: np.random.Generator) -> str:
    """One word of four letters or more with a letter lost, doubled or swapped with the next; its first one stays."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return text
    place = long[rng.integers(len(long))]
    word = words[place]
    at = int(rng.integers(1, len(word) - 1))
    words[place] = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )[rng.integers(3)]
    return " ".join(words)
