"""COCO: pictures drawn from captions, read or heard, by CLIP's cosines with the caption and with the real picture."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.benchmarks import files
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Protocol, Published, Scores
from omnidiff_jax.evaluation.intervals import Ratios

SUBSET = "subset.csv"
LAYOUTS = (
    "a folder with captions_val2014.json or captions_val2017.json (or in annotations/), or Karpathy's "
    f"dataset_coco.json, and the pictures in val2014/ or val2017/; {SUBSET}, lines IMAGE_ID,CAPTION_ID, says which "
    "captions are drawn"
)
SPOKEN_LAYOUTS = f"{LAYOUTS}; and SpokenCOCO_val.json with its wavs (data[].image, captions[].text, wav)"


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption of a picture.

    Attributes:
        picture, caption: ids.
        text: what it says.
        file: of the picture.
        wav: of it spoken, "" = none.
    """

    picture: str
    caption: str
    text: str
    file: str
    wav: str = ""


def read(data: str, protocol: Protocol) -> Iterator[Item]:
    """Captions to draw from: those of the subset in its order, else one of each picture, drawn by the protocol's seed.

    Raises:
        UserError: none of the layouts is there, or the subset names captions that are not.
    """
    place = files.folder(data, LAYOUTS)
    for caption in _chosen(place, _captions(place, data), protocol):
        yield _item(place, caption, "t2i", caption.text)


def read_spoken(data: str, protocol: Protocol) -> Iterator[Item]:
    """As `read`, of captions that are spoken in SpokenCOCO.

    Raises:
        UserError: as `read`; no spoken captions.
    """
    place = files.folder(data, SPOKEN_LAYOUTS)
    paths = files.found(place, "SpokenCOCO_val.json")
    if not paths:
        raise files.unreadable(data, SPOKEN_LAYOUTS)
    captions, content = [], files.json_file(paths[0])
    with files.told(str(paths[0]), "data: image and captions of text and wav each"):
        for picture in content["data"]:
            for number, told in enumerate(picture["captions"]):
                name = Path(str(picture["image"])).name
                caption = str(told.get("uttid", f"{Path(name).stem}-{number}"))
                captions.append(Caption(Path(name).stem, caption, str(told["text"]), name, str(told["wav"])))
    for chosen in _chosen(place, captions, protocol):
        item = _item(place, chosen, "s2i", "")
        yield dataclasses.replace(item, audio=files.beside(paths[0].parent, chosen.wav))


def _item(place: Path, caption: Caption, task: str, text: str) -> Item:
    roots = [place / name for name in ("val2014", "val2017", "images/val2014", "images/val2017", ".")]
    root = next((folder for folder in roots if (folder / caption.file).is_file()), roots[0])
    truth = {"answer": caption.text, "file": caption.file}
    reference = files.beside(root, caption.file)
    return Item("val", caption.caption, task, text, truth=truth, cluster=caption.picture, reference=reference)


def _captions(place: Path, data: str) -> list[Caption]:
    karpathy = files.found(place, "dataset_coco.json")
    if karpathy:
        content = files.json_file(karpathy[0])
        with files.told(str(karpathy[0]), "images: cocoid, filename, split and sentences of sentid and raw each"):
            return [
                Caption(str(image["cocoid"]), str(said["sentid"]), str(said["raw"]), str(image["filename"]))
                for image in content["images"]
                if image.get("split") == "test"
                for said in image["sentences"]
            ]
    for name in ("captions_val2014.json", "captions_val2017.json"):
        if paths := files.found(place, name):
            return _official(files.json_file(paths[0]), paths[0])
    raise files.unreadable(data, LAYOUTS)


def _official(content: Any, path: Path) -> list[Caption]:
    with files.told(str(path), "images of id and file_name, and annotations of image_id, id and caption"):
        named = {image["id"]: str(image["file_name"]) for image in content["images"]}
        told = content["annotations"]
        return [
            Caption(str(a["image_id"]), str(a["id"]), str(a["caption"]).strip(), named[a["image_id"]]) for a in told
        ]


def _chosen(place: Path, captions: Sequence[Caption], protocol: Protocol) -> list[Caption]:
    subset = place / SUBSET
    if subset.is_file():
        known = {(caption.picture, caption.caption): caption for caption in captions}
        wanted = []
        for number, line in files.text_lines(subset):
            with files.told(f"{subset}, line {number}", "IMAGE_ID,CAPTION_ID"):
                picture, name = line.split(",")
                wanted.append((picture.strip(), name.strip()))
        if unknown := [pair for pair in wanted if pair not in known]:
            raise UserError(f"{subset}: {len(unknown)} of {len(wanted)} captions are not there, such as {unknown[0]}")
        return [known[pair] for pair in wanted]
    by_picture: dict[str, list[Caption]] = {}
    for caption in captions:
        by_picture.setdefault(caption.picture, []).append(caption)
    rng = np.random.default_rng(int(protocol.settings["seed"]))
    chosen = [found[rng.integers(len(found))] for found in by_picture.values()]
    most = int(protocol.settings["pictures"]) or len(chosen)
    return [chosen[i] for i in rng.permutation(len(chosen))[:most]]


def score(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """Mean cosine of the drawn picture with its caption (CLIP-T) and with the real picture (CLIP-I), as they are; no
    picture is a cosine of 0."""
    numbers = {
        name: Ratios.of([float(one.judged.get(key, 0.0)) for one in answered])
        for name, key in (("CLIP-T", "clip_t"), ("CLIP-I", "clip_i"))
    }
    without = sum(not one.answer.get("picture") for one in answered)
    return Scores(numbers, notes={"without a picture": without})


def exports(answered: Sequence[Answered], protocol: Protocol) -> Mapping[str, str]:
    """Which captions were drawn, as `subset.csv` has them, with the file of each picture."""
    rows = [f"{one.item.cluster},{one.item.name},{one.answer.get('picture', '')}\n" for one in answered]
    return {"drawn.csv": "".join(rows)}


_PAPER = Protocol(
    "which captions and which CLIP were used is not said: one caption of a picture, by a seed; ViT-L/14 as GILL's code",
    judge="picture",
    settings={"seed": "0", "pictures": "5000"},
)
_SOURCE = "cocodataset.org (annotations CC BY 4.0; pictures under Flickr's terms)"


def _published(rows: Sequence[tuple[str, float, float]]) -> tuple[Published, ...]:
    sources = {"Omni-Diffusion v1": "arXiv 2603.06577v1", "Omni-Diffusion (ICML)": "ICML 2026 version"}
    return tuple(
        Published(model, metric, value, sources[model])
        for model, *values in rows
        for metric, value in zip(("CLIP-T", "CLIP-I"), values, strict=True)
    )


COCO_T2I = Benchmark(
    "COCO captions, text to image",
    LAYOUTS,
    _SOURCE,
    {},
    {"paper": _PAPER},
    read,
    score,
    exports,
    total=5000,
    published=_published([("Omni-Diffusion v1", 0.235, 0.667), ("Omni-Diffusion (ICML)", 0.236, 0.662)]),
)
COCO_S2I = Benchmark(
    "COCO captions spoken, speech to image",
    SPOKEN_LAYOUTS,
    f"{_SOURCE}; SpokenCOCO (groups.csail.mit.edu/sls/downloads/placesaudio; CC BY-SA)",
    {},
    {"paper": dataclasses.replace(_PAPER, note=f"{_PAPER.note}; whose voice spoke is not said, SpokenCOCO's is human")},
    read_spoken,
    score,
    exports,
    total=5000,
    published=_published([("Omni-Diffusion v1", 0.225, 0.645), ("Omni-Diffusion (ICML)", 0.232, 0.645)]),
)
