"""Miniatures of corpora in their true layouts, with small media made here."""

import gzip
import io
import json
import tarfile
import tracemalloc

import numpy as np
import soundfile

from data_pipelines.readers.reader import open_corpus
from omnidiff_jax.data.readers import SourceConfig
from omnidiff_jax.media.image import png_bytes, write_png

RATE = 16000


def tone(hertz, seconds=0.5, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def sound(file, hertz, seconds=0.5, rate=RATE):
    """Writes a tone in the form that the name's ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(sound_bytes(hertz, seconds, rate, file.suffix))
    return file


def sound_bytes(hertz, seconds=0.5, rate=RATE, ending=".wav"):
    buffer = io.BytesIO()
    kind, subtype = {".wav": ("WAV", None), ".flac": ("FLAC", None), ".mp3": ("MP3", None)}.get(ending, ("OGG", "OPUS"))
    soundfile.write(buffer, tone(hertz, seconds, rate), rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def picture(level):
    return np.full((6, 8, 3), level, np.uint8)


def tar(file, members):
    """Members (name, bytes or str) in their order, names as often as they are given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def parquet(file, rows, group=2):
    import pyarrow
    from pyarrow import parquet as writer

    file.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=group)
    return file


def cell(content, name="a"):
    return {"bytes": content, "path": name}


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make(name, root):
    """Writes the miniature of a corpus; two records each, of which `EXPECTED` knows the text."""
    return globals()[f"_{name}"](root)


def _librispeech(root):
    chapter = root / "LibriSpeech" / "train-clean-100" / "19" / "198"
    for number in (0, 1):
        sound(chapter / f"19-198-000{number}.flac", 300 + 100 * number)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 IT'S A TEST\n")


def _libritts(root):
    chapter = root / "LibriTTS" / "train-clean-100" / "19" / "198"
    for number, text in enumerate(("Northanger Abbey.", "It's a test!")):
        name = f"19_198_000000_00000{number}"
        sound(chapter / f"{name}.wav", 300 + 100 * number, rate=24000)
        (chapter / f"{name}.normalized.txt").write_text(text)
        (chapter / f"{name}.original.txt").write_text(text.upper())
    (chapter / "._19_198_000000_000000.normalized.txt").write_text("junk")


def _common_voice(root):
    home = root / "cv-corpus-21" / "en"
    names = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
    rows = [
        ["c", f"clip_{n}.mp3", text, *"21", "", "", "", "", "en", ""]
        for n, text in enumerate(('"Well, he said.', "Yes."))
    ]
    for row in rows:
        sound(home / "clips" / row[1], 400, rate=32000)
    (home / "train.tsv").write_text("\n".join("\t".join(row) for row in [names, *rows]) + "\n")


def _gigaspeech(root):
    sound(root / "audio" / "podcast" / "P0.opus", 440, 3.0)
    texts = ("YES <COMMA> IT IS <PERIOD>", "WHAT <QUESTIONMARK>")
    segments = [
        {
            "sid": f"P0_S{n}",
            "begin_time": n + 0.25,
            "end_time": n + 1.0,
            "text_tn": text,
            "subsets": ["{XL}", "{S}"],
            "speaker": "N/A",
        }
        for n, text in enumerate(texts)
    ]
    segments.append(segments[0] | {"sid": "P0_S9", "subsets": ["{TEST}"]})
    recording = {
        "aid": "P0",
        "path": "audio/podcast/P0.opus",
        "sample_rate": RATE,
        "duration": 3.0,
        "segments": segments,
    }
    (root / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": [recording]}))


def _voxpopuli(root):
    sound(root / "raw_audios" / "en" / "20100101-0900_en.ogg", 440, 3.0)
    rows = ["session_id|start_time|end_time|normed_text|original_text|split"]
    rows += ["20100101-0900|0.5|1.25|mister president||train", "20100101-0900|1.5|2.0|thank you|Thank you.|train"]
    rows += ["20100101-0900|2.0|2.5|another|Another.|test"]
    with gzip.open(root / "asr_en.tsv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")


def _peoples_speech(root):
    rows = [
        {
            "id": f"p{n}",
            "audio": cell(sound_bytes(300, ending=".flac"), "a.flac"),
            "duration_ms": 500,
            "text": f"people {n}",
        }
        for n in (0, 1)
    ]
    parquet(root / "clean" / "train-00000-of-00001.parquet", rows)


def _emilia(root):
    members = []
    for n in (0, 1):
        told = {
            "id": f"EN_B0_S{n}",
            "wav": f"EN_B0/mp3/EN_B0_S{n}.mp3",
            "text": f" Emilia {n}.",
            "language": "en",
            "speaker": "s",
            "dnsmos": 3.1,
        }
        members += [
            (f"EN_B0_S{n}.mp3", sound_bytes(300, rate=24000, ending=".mp3")),
            (f"EN_B0_S{n}.json", json.dumps(told)),
        ]
    tar(root / "Emilia" / "EN" / "EN-B000000.tar", members)


def _globe(root):
    rows = [
        {
            "audio": cell(sound_bytes(300), "a.wav"),
            "speaker_id": "S1",
            "transcript": f"Globe {n}.",
            "accent": "",
            "duration": 0.5,
        }
        for n in (0, 1)
    ]
    parquet(root / "data" / "train-00000-of-00001.parquet", rows)


def _tulu3(root):
    rows = [
        {
            "id": f"t{n}",
            "messages": [{"content": f"Ask {n}?", "role": "user"}, {"content": f"Tulu {n}.", "role": "assistant"}],
            "source": "x",
        }
        for n in (0, 1)
    ]
    parquet(root / "data" / "train-00000-of-00001.parquet", rows)


def _llava_onevision(root):
    turns = [
        [{"from": "human", "value": asked}, {"from": "gpt", "value": f"Llava {n}."}]
        for n, asked in enumerate(("<image>\nWhat?", "Why?"))
    ]
    rows = [{"id": "a", "image": cell(png_bytes(picture(40)), "a.png"), "conversations": turns[0], "data_source": "x"}]
    rows += [{"id": "b", "image": None, "conversations": turns[1], "data_source": "x"}]
    parquet(root / "tqa(cauldron,llava_format)" / "train-00000-of-00001.parquet", rows)


def _journeydb(root):
    home = root / "data" / "train"
    for n in (0, 1):
        write_png(home / "imgs" / "000" / f"{n}.png", picture(n))
    lines(
        home / "train_anno_realease_repath.jsonl",
        [{"img_path": f"./000/{n}.png", "prompt": f"journey {n}", "Task2": {"Caption": "c"}} for n in (0, 1)],
    )


def _laion(root):
    members = []
    for n in (0, 1):
        key = f"00000000{n}"
        told = {"url": "u", "caption": f"laion {n}", "key": key, "status": "success", "width": 8, "height": 6}
        members += [
            (f"{key}.jpg", png_bytes(picture(n))),
            (f"{key}.json", json.dumps(told)),
            (f"{key}.txt", f"laion {n}"),
        ]
    tar(root / "00000.tar", members)


def _voiceassistant(root):
    rows = [
        {
            "split_name": "identity",
            "index": str(n),
            "round": "1",
            "question": "Who?",
            "question_audio": cell(sound_bytes(300), "q.wav"),
            "answer": f"Omni {n}.",
            "answer_snac": "# 1 2",
        }
        for n in (0, 1)
    ]
    parquet(root / "data" / "train-00000-of-00001.parquet", rows)


def _audioqa(root):
    rows = []
    for n in (0, 1):
        sound(root / "wav" / f"q{n}.wav", 300)
        sound(root / "wav" / f"a{n}.wav", 500)
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": "q", "wavpath": f"wav/q{n}.wav"},
                    {"role": "assistant", "content": f"audioqa {n}", "wavpath": f"wav/a{n}.wav"},
                ]
            }
        )
    (root / "train.json").write_text(json.dumps(rows))


def _coco(root):
    for n in (0, 1):
        write_png(root / "train2017" / f"00000{n}.png", picture(n))
    content = {
        "images": [{"id": n, "file_name": f"00000{n}.png"} for n in (0, 1)],
        "annotations": [{"id": 10 + n, "image_id": n, "caption": f"coco {n}"} for n in (0, 1)],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))


EXPECTED = {
    "librispeech": ("asr", "northanger abbey", "it's a test"),
    "libritts": ("tts", "Northanger Abbey.", "It's a test!"),
    "common_voice": ("asr", '"Well, he said.', "Yes."),
    "gigaspeech": ("asr", "yes, it is.", "what?"),
    "voxpopuli": ("asr", "mister president", "thank you"),
    "peoples_speech": ("asr", "people 0", "people 1"),
    "emilia": ("tts", "Emilia 0.", "Emilia 1."),
    "globe": ("tts", "Globe 0.", "Globe 1."),
    "tulu3": ("text_qa", "Tulu 0.", "Tulu 1."),
    "llava_onevision": ("vqa", "Llava 0.", "Llava 1."),
    "journeydb": ("t2i", "journey 0", "journey 1"),
    "laion": ("t2i", "laion 0", "laion 1"),
    "voiceassistant": ("spoken_qa", "Omni 0.", "Omni 1."),
    "audioqa": ("spoken_qa", "audioqa 0", "audioqa 1"),
    "coco": ("captioning", "coco 0", "coco 1"),
}


def opened(name, root, **given):
    return open_corpus(name, SourceConfig(name, path=str(root), **given))


def with_peak(made):
    """What `made` gives, and the most bytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        return made(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
