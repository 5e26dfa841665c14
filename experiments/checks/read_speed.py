"""How fast raw sources are read and encoded, each beside its floor, on one core.

    omnidiff read_speed
    omnidiff read_speed --records=2000 --json

It writes small corpora of real layouts (pictures in parquet and in tars, flac in LibriSpeech's tree, stretches of a
long mp3, conversations in parquet) and takes records in the order of training. `read` is records a second with their
media decoded, `floor` the same media decoded from memory by Pillow or soundfile alone; `encode` is reading and
tokenizing with the shipped tokenizers, `tokenizers` tokenizing alone. All in processor time, so other work on the
machine does not count.
"""

import functools
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from data_pipelines.readers.reader import open_corpus
from experiments.checks.mutations import tar_bytes
from experiments.common import Command
from omnidiff_jax.codecs.encode import encode_one, load_media
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.codecs.tokenizers import TokenizersConfig, open_tokenizers
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.data.sources import RandomAccess, Source
from omnidiff_jax.records import EncodedExample, Record

COMMAND = Command("read_speed", __doc__)
RECORDS = COMMAND.integer("records", "of each corpus", 600, minimum=8)
ENCODED = COMMAND.integer("encoded", "of them also encoded", 40, minimum=1)
JSON = COMMAND.switch("json", "end with one line of JSON")
_RATE = 16000


def run() -> None:
    codecs = open_tokenizers(TokenizersConfig()).codecs
    told: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="omnidiff-read-") as place:
        for name, make in _CORPORA.items():
            root = Path(place) / name
            root.mkdir()
            config, contents = make(root, int(RECORDS.value or 0))
            records = open_corpus(config.reader, config)
            order = _order(records)
            loaded = [load_media(records[index]) for index in order[: ENCODED.value]]
            encode_one(loaded[0], codecs)  # compiles
            told[name] = {
                "read": _rate(functools.partial(_loaded, records), order),
                "floor": _rate(_decoded, contents) if contents else None,
                "encode": _rate(functools.partial(_encoded, codecs, records), order[: ENCODED.value]),
                "tokenizers": _rate(lambda record: encode_one(record, codecs), loaded),
            }
            if not JSON.value:
                print(f"{name}: " + ", ".join(f"{what} {speed}/s" for what, speed in told[name].items() if speed))
    if JSON.value:
        print(json.dumps(told))


def _order(records: RandomAccess[Record]) -> list[int]:
    """Indices as one of four streams draws them, then the next."""
    source: Source[Record] = Source(records)
    size = len(records) // 4
    walks = [[source.place(draw, stream, 4, 0, "speed")[0] for draw in range(size)] for stream in range(4)]
    return [index for step in zip(*walks, strict=True) for index in step]


def _rate(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
    began = time.process_time()
    for item in items:
        work(item)
    return round(len(items) / max(time.process_time() - began, 1e-9), 1)


def _decoded(content: bytes) -> Any:
    if content[:2] == b"\xff\xd8":
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return soundfile.read(io.BytesIO(content), dtype="float32")


Made = tuple[SourceConfig, list[bytes]]


def _pictures(count: int) -> list[bytes]:
    rng, contents = np.random.default_rng(0), []
    for _ in range(min(count, 32)):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    return [contents[number % len(contents)] for number in range(count)]


def _speech(seconds: float, ending: str) -> bytes:
    rng = np.random.default_rng(0)
    wave = np.sin(np.cumsum(rng.uniform(0.02, 0.4, int(seconds * 8))).repeat(_RATE // 8)) * 0.3
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), _RATE, format=ending)
    return buffer.getvalue()


def _parquet_pictures(root: Path, count: int) -> Made:
    import pyarrow
    from pyarrow import parquet

    contents = _pictures(count)
    rows = [{"image": {"bytes": content, "path": "a"}, "text": f"picture {n}"} for n, content in enumerate(contents)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet", row_group_size=100)
    return SourceConfig("parquet", path=str(root), columns={"image": "image", "text": "text"}), contents


def _tar_pictures(root: Path, count: int) -> Made:
    contents = _pictures(count)
    members = [
        (f"{n}.{ending}", part) for n, c in enumerate(contents) for ending, part in (("jpg", c), ("txt", b"seen"))
    ]
    (root / "train-0.tar").write_bytes(tar_bytes(members)[0])
    return SourceConfig("tar", path=str(root), columns={"image": "jpg", "text": "txt"}), contents


def _loaded(records: RandomAccess[Record], index: int) -> Record:
    return load_media(records[index])


def _encoded(codecs: Codecs, records: RandomAccess[Record], index: int) -> EncodedExample:
    return encode_one(records[index], codecs)


def _librispeech(root: Path, count: int) -> Made:
    content, chapter = _speech(12.0, "FLAC"), root / "train-clean-100" / "1" / "2"
    chapter.mkdir(parents=True)
    for number in range(count):
        (chapter / f"1-2-{number:04}.flac").write_bytes(content)
    (chapter / "1-2.trans.txt").write_text("".join(f"1-2-{number:04} WORDS\n" for number in range(count)))
    return SourceConfig("librispeech", path=str(root)), [content] * count


def _segments(root: Path, count: int) -> Made:
    minutes, seconds = 20, 8.0
    (root / "a.mp3").write_bytes(_speech(60.0 * minutes, "MP3"))
    starts = (n * 7 % (60 * minutes - 9) for n in range(count))
    rows = ({"audio": "a.mp3", "start": start, "end": start + seconds, "text": "words"} for start in starts)
    lines = (json.dumps(row) + "\n" for row in rows)
    (root / "a.jsonl").write_text("".join(lines))
    columns = {name: name for name in ("audio", "start", "end", "text")}
    return SourceConfig("json_lines", path=str(root), columns=columns), [_speech(seconds, "MP3")] * count


def _conversations(root: Path, count: int) -> Made:
    import pyarrow
    from pyarrow import parquet

    turns = [
        {"role": "user", "content": "Why is it so? " * 20},
        {"role": "assistant", "content": "Because it is. " * 40},
    ]
    rows = [{"id": str(n), "messages": turns} for n in range(10 * count)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet", row_group_size=1000)
    return SourceConfig("tulu3", path=str(root)), []


_CORPORA: dict[str, Callable[[Path, int], Made]] = {
    "pictures of 640 x 480 in parquet": _parquet_pictures,
    "pictures of 640 x 480 in a tar": _tar_pictures,
    "12 s of flac in a tree": _librispeech,
    "8 s stretches of 20 minutes of mp3": _segments,
    "conversations in parquet": _conversations,
}


if __name__ == "__main__":
    COMMAND.main(run)
