"""The things of Commons: what emoji show that has a name, a kind and a picture in both styles of drawing.

Faces, people's roles, flags, clocks and signs are out: a picture must show a thing that one would call by its name.
"""

import collections
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from data_pipelines.commons import wordnet
from omnidiff_jax.errors import UserError
from omnidiff_jax.fetching import local_copy
from omnidiff_jax.records import stable_id

STYLES = ("google", "twitter")  # the first is learned
LARGEST = 8 << 20  # bytes of emoji.json
_HELD_OUT = 10  # one thing in this many is never learned
_WORDS = 4


@dataclasses.dataclass(frozen=True)
class Category:
    """What a subcategory of emoji is called here.

    Attributes:
        name: its word.
        subjects: of WordNet, that its things belong to.
        is_animal: whether they are animals.
    """

    name: str
    subjects: tuple[str, ...]
    is_animal: bool = False


_MADE = (wordnet.ARTIFACT,)
_EATEN = (wordnet.FOOD, wordnet.PLANT)
_NATURE = (wordnet.OBJECT, wordnet.PHENOMENON, wordnet.ARTIFACT)


def _animal(name: str) -> Category:
    return Category(name, (wordnet.ANIMAL,), True)


_CATEGORIES = {
    "animal-mammal": _animal("mammal"),
    "animal-bird": _animal("bird"),
    "animal-amphibian": _animal("amphibian"),
    "animal-reptile": _animal("reptile"),
    "animal-marine": _animal("sea animal"),
    "animal-bug": _animal("bug"),
    "plant-flower": Category("flower", (wordnet.PLANT, wordnet.ARTIFACT)),
    "plant-other": Category("plant", (wordnet.PLANT,)),
    "food-fruit": Category("fruit", _EATEN),
    "food-vegetable": Category("vegetable", _EATEN),
    "food-prepared": Category("dish", _EATEN),
    "food-asian": Category("dish", _EATEN),
    "food-sweet": Category("sweet", _EATEN),
    "drink": Category("drink", (wordnet.FOOD, wordnet.ARTIFACT)),
    "dishware": Category("tableware", _MADE),
    "transport-ground": Category("vehicle", _MADE),
    "transport-water": Category("vehicle", _MADE),
    "transport-air": Category("vehicle", _MADE),
    "place-building": Category("building", _MADE),
    "place-religious": Category("building", _MADE),
    "place-geographic": Category("place", (*_NATURE, wordnet.LOCATION)),
    "place-other": Category("place", _NATURE),
    "sky & weather": Category("sky or weather", _NATURE),
    "clothing": Category("clothing", _MADE),
    "musical-instrument": Category("instrument", _MADE),
    "music": Category("sound equipment", _MADE),
    "sound": Category("sound equipment", _MADE),
    "light & video": Category("light or video", _MADE),
    "phone": Category("electronics", _MADE),
    "computer": Category("electronics", _MADE),
    "book-paper": Category("book or paper", (wordnet.COMMUNICATION, wordnet.ARTIFACT)),
    "office": Category("office supplies", (wordnet.ARTIFACT, wordnet.COMMUNICATION)),
    "writing": Category("writing tool", _MADE),
    "mail": Category("mail", (wordnet.ARTIFACT, wordnet.COMMUNICATION)),
    "money": Category("money", (wordnet.POSSESSION, wordnet.ARTIFACT, wordnet.COMMUNICATION)),
    "science": Category("science", _MADE),
    "medical": Category("medicine", (wordnet.ARTIFACT, wordnet.FOOD)),
    "tool": Category("tool", _MADE),
    "lock": Category("lock or key", _MADE),
    "household": Category("household item", (wordnet.ARTIFACT, wordnet.SUBSTANCE)),
    "hotel": Category("household item", _MADE),
    "sport": Category("sport", (wordnet.ARTIFACT, wordnet.ACT)),
    "game": Category("game or toy", (wordnet.ARTIFACT, wordnet.ACT)),
    "arts & crafts": Category("art or craft", _MADE),
    "event": Category("celebration", _MADE),
    "award-medal": Category("award", (wordnet.COMMUNICATION, wordnet.ARTIFACT)),
    "time": Category("clock", _MADE),
    "body-parts": Category("body part", (wordnet.BODY,)),
}
# Signs, parts, and what is not of the kind that its subcategory says.
_NO_THINGS = re.compile(r"symbol|\bsign\b|arrow|^clock face|^oncoming|moon with|sun with| suit$|speaker with|:")
_NO_THING = frozenset(
    (
        "paw prints", "pig nose", "unicorn face", "service dog", "guide dog", "dragon", "dragon face", "phoenix",
        "feather", "wing", "spiral shell", "coral", "spider web", "microbe", "empty nest", "nest with eggs", "mushroom",
        "rosette", "black bird", "pouring liquid", "ice cube", "cooking", "egg", "salt shaker", "honey pot",
        "station", "bus stop", "horizontal traffic light", "vertical traffic light", "wheel", "oil drum", "motorway",
        "railway track", "fuel pump", "octagonal sign", "police cars revolving light", "construction sign",
        "mountain railway", "railway car", "tram car", "seat", "suspension railway", "mountain cableway", "parachute",
        "satellite", "ring buoy", "anchor", "airplane departure", "airplane arriving", "brick", "rock", "wood",
        "building construction", "wedding", "love hotel", "statue of liberty", "foggy", "barber pole", "kaaba",
        "carousel horse", "closed umbrella", "umbrella with rain drops", "umbrella on ground", "umbrella",
        "snowman without snow", "droplet", "fire", "thermometer", "wind face", "milky way", "gem stone", "lipstick",
        "ring", "musical note", "multiple musical notes", "bell with cancellation stroke", "level slider",
        "control knobs", "low battery", "bookmark tabs", "page facing up", "chart with upwards trend", "bar chart",
        "chart with downwards trend", "broken chain", "x-ray", "drop of blood", "elevator", "bubbles", "direct hit",
        "pistol", "flag in hole", "biting lip", "ear with hearing aid", "eyes", "performing arts", "reminder ribbon",
        "moon viewing ceremony", "sparkles", "camera with flash", "open lock", "incoming envelope", "outbox tray",
        "inbox tray", "ballot box with ballot", "rolled-up newspaper", "page with curl", "open file folder", "hotel",
        "chart with upwards trend and yen sign", "label", "mechanical arm", "mechanical leg", "european post office",
        "front-facing baby chick", "hatching chick", "pine decoration", "tanabata tree", "cut of meat",
        "right-pointing magnifying glass", "japanese dolls", "money with wings", "flower playing cards",
    )
)  # fmt: skip
# Unicode's names that nobody would say.
_SAID = {
    "black scissors": "scissors",
    "black nib": "nib",
    "black telephone": "telephone",
    "black sun with rays": "sun",
    "white medium star": "star",
    "house building": "house",
    "personal computer": "laptop",
    "playing card black joker": "joker card",
    "left-pointing magnifying glass": "magnifying glass",
    "public address loudspeaker": "loudspeaker",
    "electric light bulb": "light bulb",
    "closed lock with key": "lock and key",
    "japanese post office": "post office",
    "fish cake with swirl design": "fish cake",
    "drum with drumsticks": "drum",
    "hocho": "kitchen knife",
    "womans hat": "woman's hat",
    "womans clothes": "blouse",
    "womans sandal": "sandal",
    "womans boots": "boot",
    "mans shoe": "shoe",
    "rescue worker’s helmet": "rescue helmet",
    "anatomical heart": "heart",
    "jigsaw puzzle piece": "puzzle piece",
    "cityscape at dusk": "city at dusk",
    "running shirt with sash": "running shirt",
    "martial arts uniform": "judo uniform",
    "satellite antenna": "satellite dish",
    "aubergine": "eggplant",
    "mahjong tile red dragon": "mahjong tile",
    "izakaya lantern": "lantern",
    "mate drink": "mate",
    "ear of maize": "corn",
    "hourglass with flowing sand": "running hourglass",
}
_MASS = frozenset(
    (
        "bread", "popcorn", "bacon", "sushi", "garlic", "butter", "corn", "broccoli", "spaghetti", "fog", "oden",
        "falafel", "camping", "bowling", "cooked rice", "curry and rice", "canned food", "baguette bread", "shaved ice",
        "mount fuji", "luggage", "tokyo tower", "ginger root", "sunrise over mountains",
        "sunset over buildings", "night with stars", "billiards",
    )
)  # fmt: skip
# What WordNet's first sense of their kind is not.
_OTHER_SENSE = frozenset(("black cat", "blue book", "peacock", "pick", "bank", "dolphin", "cityscape", "crown"))


@dataclasses.dataclass(frozen=True)
class Thing:
    """Something that a picture shows.

    Attributes:
        name: what it is called; no other thing has this name.
        synonyms: other words for it; no other thing's name or synonym.
        category: the word of its kind.
        is_animal: whether it is one.
        picture: file name of its picture, in every style.
        description: what WordNet says of it, "" = nothing; no other thing's.
        held_out: whether nothing may be learned about it.
    """

    name: str
    synonyms: tuple[str, ...]
    category: str
    is_animal: bool
    picture: str
    description: str
    held_out: bool

    @property
    def one(self) -> str:
        """The name with its article, if it takes one."""
        return with_article(self.name)

    @property
    def many(self) -> bool:
        """Whether it is spoken of as more than one: grapes, scissors."""
        return self.one == self.name and self.name.endswith("s") and self.name not in _MASS


@dataclasses.dataclass(frozen=True)
class Family:
    """People to be counted.

    Attributes:
        name: who they are.
        people: how many, 2 .. 5.
        picture: file name of their picture, in every style.
        held_out: whether they may not be learned.
    """

    name: str
    people: int
    picture: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class World:
    """All there is.

    Attributes:
        folder: that holds `google/pictures` and `twitter/pictures`.
        things: by name.
        families: by name.
        categories: words of kinds, by name.
    """

    folder: Path
    things: tuple[Thing, ...]
    families: tuple[Family, ...]
    categories: tuple[str, ...]

    def of(self, held_out: bool) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.held_out == held_out)


def with_article(name: str) -> str:
    """The name as one speaks of one such thing: "an owl", "grapes"."""
    if name in _MASS or (name.endswith("s") and not name.endswith(("ss", "us", "is", "os"))):
        return name
    vowel = re.match(r"[aeiou]|hour|x-|mri", name) and not re.match(r"uni|eu|one-|uku", name)
    return f"an {name}" if vowel else f"a {name}"


@functools.lru_cache(maxsize=4)
def open_world(folder: str) -> World:
    """Reads names and kinds from `google/emoji.json`, definitions from `wordnet`.

    Args:
        folder: that `omnidiff data fetch commons` wrote, here or in a bucket.

    Raises:
        UserError: no folder is named, or a file is missing or not what it should be.
    """
    if not folder:
        raise UserError("Commons needs a folder: get it by `omnidiff data fetch commons DIR` and name it in the config")
    place = local_copy(folder)
    rows = _rows(place / STYLES[0] / "emoji.json")
    shown = {
        said: (row, _CATEGORIES[row["subcategory"]])
        for row in rows
        if row["subcategory"] in _CATEGORIES and (said := _said(row["name"].lower()))
    }
    shown = {_bare(name, shown): found for name, found in shown.items()}
    synonyms = _synonyms({name: row["short_names"] for name, (row, _) in shown.items()})
    wanted = {
        name: ((name, *(word for word in synonyms[name] if word in name)), category.subjects)
        for name, (_, category) in shown.items()
        if name not in _OTHER_SENSE
    }
    described = wordnet.definitions(place / "wordnet", wanted)
    often = collections.Counter(described.values())
    things = tuple(
        Thing(
            name,
            synonyms[name],
            category.name,
            category.is_animal,
            row["image"],
            described[name] if often[described.get(name, "")] == 1 else "",
            _is_held_out(name),
        )
        for name, (row, category) in sorted(shown.items())
    )
    families = (_family(row) for row in rows if row["name"].startswith("FAMILY: "))
    kinds = sorted({thing.category for thing in things})
    return World(place, things, tuple(sorted(families, key=lambda family: family.name)), tuple(kinds))


def _is_held_out(name: str) -> bool:
    return stable_id("commons concept", name) % _HELD_OUT == 0


def _family(row: Any) -> Family:
    name = row["name"].lower()
    return Family(name, name.count(",") + 1, row["image"], _is_held_out(name))


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"over {LARGEST} bytes")
        rows = [row for row in json.loads(file.read_bytes()) if row["name"]]
        for row in rows:
            if not all(isinstance(row[key], str) for key in ("name", "subcategory", "image")):
                raise ValueError(f"a name or an image of {row['name']!r} is no text")
            if not re.fullmatch(r"[0-9a-f-]+\.png", row["image"]) or not all(map(str.strip, row["short_names"])):
                raise ValueError(f"image {row['image']!r}")
        return [row for row in rows if all(row[f"has_img_{style}"] for style in STYLES)]
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({error.strerror}); get it by `omnidiff data fetch commons DIR --part={STYLES[0]}`"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not the emoji.json of emoji-datasource ({error}); fetch it again") from error


def _said(name: str) -> str:
    """What a thing of Unicode's name is called, "" = it is none."""
    if name in _NO_THING or (_NO_THINGS.search(name) and name not in _SAID):
        return ""
    said = _SAID.get(name, name)
    return said if len(said.split()) <= _WORDS and re.fullmatch(r"[a-z'\- ]+", said) else ""


def _bare(name: str, names: Any) -> str:
    """The name without "face", where there is no whole one of its kind."""
    bare = name.removesuffix(" face")
    return name if bare in names else bare


def _synonyms(short: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Short names as words, of one thing each."""
    words = {
        name: list(dict.fromkeys(word.replace("_", " ") for word in found if re.fullmatch("[a-z_-]+", word)))
        for name, found in short.items()
    }
    often = collections.Counter(word for found in words.values() for word in found)
    return {
        name: tuple(word for word in found if word not in words and often[word] == 1) for name, found in words.items()
    }
