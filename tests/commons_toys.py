"""A miniature of the folder that `omnidiff data fetch commons` writes: few emoji in two styles, a dozen senses."""

import json

import numpy as np
from PIL import Image

# name, short names, subcategory, WordNet: subject and gloss of each sense, the most frequent first
TOYS = [
    ("CAT", ["cat2"], "animal-mammal", [("18", "a gossip"), ("05", 'small feline beast (tame): a pet; "cats purr"')]),
    ("CAT FACE", ["cat"], "animal-mammal", []),
    ("WOLF FACE", ["wolf"], "animal-mammal", [("05", "wild beast that hunts in packs")]),
    ("OWL", ["owl"], "animal-bird", [("05", "an owl of the night")]),
    ("PENGUIN", ["penguin"], "animal-bird", []),
    ("SHARK", ["shark"], "animal-marine", [("05", "a large fish with teeth, which bites")]),
    ("SNAKE", ["snake"], "animal-reptile", []),
    ("LEMON", ["lemon", "yellow_fruit"], "food-fruit", [("13", "sour yellow food of a tree")]),
    ("GRAPES", ["grapes"], "food-fruit", []),
    ("HAMBURGER", ["hamburger", "burger"], "food-prepared", []),
    ("HAMMER", ["hammer", "mallet"], "tool", [("06", "a tool for driving nails")]),
    ("WRENCH", ["wrench", "mallet"], "tool", []),
    ("BLACK SCISSORS", ["scissors"], "office", []),
    ("AUTOMOBILE", ["car"], "transport-ground", [("06", "a motor vehicle with four wheels")]),
    ("HOURGLASS", ["hourglass"], "time", []),
]
NO_TOYS = [
    ("UP ARROW", ["arrow_up"], "arrow"),
    ("CLOCK FACE ONE OCLOCK", ["clock1"], "time"),
    ("PAW PRINTS", ["feet"], "animal-mammal"),
    ("GRINNING FACE", ["grinning"], "face-smiling"),
    ("SUN BEHIND A VERY LARGE CLOUD", ["cloudy"], "sky & weather"),
]
FAMILIES = [("FAMILY: MAN, BOY", 2), ("FAMILY: WOMAN, GIRL, BOY", 3), ("FAMILY: ADULT, ADULT, CHILD, CHILD", 4)]


def write_world(folder):
    """Writes google/, twitter/ and wordnet/ into a folder."""
    shown = [(name, short, kind) for name, short, kind, _ in TOYS] + NO_TOYS
    shown += [(name, [f"family{people}"], "family") for name, people in FAMILIES]
    rows = [
        {
            "name": name,
            "short_names": short,
            "subcategory": kind,
            "image": f"{0x1F400 + number:x}.png",
            "has_img_google": True,
            "has_img_twitter": True,
        }
        for number, (name, short, kind) in enumerate(shown)
    ]
    rows.append(rows[0] | {"name": "TIGER", "image": "0.png", "has_img_twitter": False})
    for style, level in (("google", 40), ("twitter", 200)):
        pictures = folder / style / "pictures"
        pictures.mkdir(parents=True)
        (folder / style / "emoji.json").write_text(json.dumps(rows))
        for number, row in enumerate(rows):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[8:40, 8:56] = (10 * number, level, 255 - level, 255)
            Image.fromarray(pixels).save(pictures / row["image"])
    _write_nouns(folder / "wordnet")


def _write_nouns(folder):
    """data.noun and index.noun as wndb(5WN) has them: a sense begins at the byte that is its number."""
    folder.mkdir(parents=True)
    data, index = b"  1 This is no WordNet.\n", ["  1 This is no WordNet."]
    for name, _, _, senses in TOYS:
        word = name.lower().removesuffix(" face").replace(" ", "_")
        offsets = []
        for subject, gloss in senses:
            offsets.append(f"{len(data):08d}")
            data += f"{len(data):08d} {subject} n 01 {word} 0 001 @ 00000000 n 0000 | {gloss}  \n".encode()
        if offsets:
            index.append(f"{word} n {len(offsets)} 1 @ {len(offsets)} 0 {' '.join(offsets)}  ")
    (folder / "data.noun").write_bytes(data)
    (folder / "index.noun").write_text("\n".join(index) + "\n")
