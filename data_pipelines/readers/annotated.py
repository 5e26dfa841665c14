"""Layouts of one corpus each: trees with transcript files, segments of long recordings, annotations beside pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.readers.index import FAULT, Lines, Row, indexed
from data_pipelines.readers.layouts import AUDIOS, beside, found, read_json, relative, table, text_lines
from data_pipelines.readers.streamed import elements
from omnidiff_jax.errors import UserError


def librispeech(root: Path, split: str) -> Lines | None:
    """`SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`, lines "ID TEXT", beside ID.flac."""
    files = found(root, ["*.trans.txt"], split)
    if not files or root.is_file():
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            with text_lines(file) as lines:
                for line in lines:
                    name, _, text = line.strip().partition(" ")
                    if not name:
                        continue
                    sound = file.with_name(f"{name}.flac")
                    if sound.is_file():
                        speaker, chapter = [*name.split("-"), "", ""][:2]
                        row = {"id": name, "audio": relative(root, sound), "text": text}
                        yield row | {"speaker_id": speaker, "chapter_id": chapter}
                    else:
                        yield {FAULT: "missing audio", "id": str(sound)}

    return indexed(f"librispeech {split}", root, files, rows)


def libritts(root: Path, split: str) -> Lines | None:
    """`SPLIT/SPEAKER/CHAPTER/ID.wav` with ID.normalized.txt and ID.original.txt."""
    files = found(root, ["*.normalized.txt"], split)
    if not files or root.is_file():
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            name = file.name.removesuffix(".normalized.txt")
            sound, original = file.with_name(f"{name}.wav"), file.with_name(f"{name}.original.txt")
            if not sound.is_file():
                yield {FAULT: "missing audio", "id": str(sound)}
                continue
            row = {"id": name, "audio": relative(root, sound), "speaker_id": name.split("_")[0]}
            for key, place in (("text_normalized", file), ("text_original", original)):
                row[key] = place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
            yield row

    return indexed(f"libritts {split}", root, files, rows)


def common_voice(root: Path, split: str) -> Lines | None:
    """`LOCALE/SPLIT.tsv` with media in `LOCALE/clips/`; quotes are characters."""
    files = found(root, [f"{split}.tsv"])
    if not files:
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            # What a table has is indexed once more with its folder: cells name files of `clips`.
            content = table(file, "*.tsv", "\t", quoted=False)
            assert content is not None
            for number in range(len(content)):
                row = content[number]
                if "path" in row:
                    row = row | {"audio": beside(root, file.parent / "clips", row["path"])}
                yield row

    return indexed(f"common voice {split}", root, files, rows)


def gigaspeech(root: Path, split: str) -> Lines | None:
    """`GigaSpeech.json`: segments of long recordings.

    `split` names a subset, as XL or {XL}; "train" takes all but DEV and TEST.
    """
    files = found(root, ["GigaSpeech.json"])
    if not files:
        return None
    wanted = split.strip("{}").upper()

    def rows() -> Iterator[Row]:
        for file in files:
            with text_lines(file) as lines:
                for number, recording in enumerate(elements(lines, file, "audios"), start=1):
                    yield from _segments(recording, wanted, f"{file.name}, recording {number}")

    return indexed(f"gigaspeech {split}", root, files, rows)


def _segments(recording: Any, wanted: str, where: str) -> Iterator[Row]:
    segments = recording.get("segments") or [] if isinstance(recording, dict) else None
    if not isinstance(segments, list):
        yield {FAULT: "row is no object", "id": where}
        return
    for segment in segments:
        named = segment.get("subsets") or [] if isinstance(segment, dict) else None
        if not isinstance(named, list):
            yield {FAULT: "row is no object", "id": where}
            continue
        subsets = {str(name).strip("{}").upper() for name in named}
        if (subsets & {"DEV", "TEST"}) if wanted == "TRAIN" else wanted not in subsets:
            continue
        yield {
            "segment_id": segment.get("sid"),
            "audio": recording.get("path"),
            "begin_time": segment.get("begin_time"),
            "end_time": segment.get("end_time"),
            "text": segment.get("text_tn"),
            "speaker": segment.get("speaker"),
        }


def voxpopuli(root: Path, split: str) -> Lines | None:
    """`asr_LANG.tsv.gz`, cells between `|`, whose rows are stretches of whole sessions in `raw_audios/`."""
    files = found(root, ["asr_*.tsv.gz", "asr_*.tsv"])
    if not files or root.is_file():
        return None

    def rows() -> Iterator[Row]:
        sounds = {file.stem: relative(root, file) for file in found(root, [f"*{ending}" for ending in AUDIOS])}
        for file in files:
            content = table(file, "*", "|", quoted=False)
            assert content is not None
            language = file.name.removeprefix("asr_").partition(".")[0]
            for number in range(len(content)):
                row = content[number]
                if FAULT in row:
                    yield row
                    continue
                if row.get("split", split) != split:
                    continue
                session = row.get("session_id", "")
                names = (session, f"{session}_{language}", f"{session}_original")
                sound = next((sounds[name] for name in names if name in sounds), "")
                if not sound:
                    yield {FAULT: "missing audio", "id": f"{file.name}, session {session}"}
                    continue
                yield row | {"audio": sound, "language": language}

    return indexed(f"voxpopuli {split}", root, files, rows)


def coco(root: Path, split: str) -> Lines | None:
    """`annotations/captions_SPLITYEAR.json` with pictures in `SPLITYEAR/`."""
    files = found(root, [f"captions_{split}*.json"])
    if not files or root.is_file():
        return None

    def rows() -> Iterator[Row]:
        for file in files:
            with text_lines(file) as lines:
                content = read_json(lines, file)
            names = {str(image.get("id")): image.get("file_name") for image in _list(content, "images", file)}
            folder = file.stem.removeprefix("captions_")
            home = next((place for place in root.rglob(folder) if place.is_dir()), root)
            for told in _list(content, "annotations", file):
                name = names.get(str(told.get("image_id")))
                if not isinstance(name, str):
                    yield {FAULT: "missing image", "id": f"{file.name}, caption {told.get('id')}"}
                    continue
                yield {"id": told.get("id"), "image": beside(root, home, name), "caption": told.get("caption")}

    return indexed(f"coco {split}", root, files, rows)


def _list(content: Any, key: str, file: Path) -> list[dict[str, Any]]:
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{file} has no list of objects {key!r}; copy it again")
    return items
