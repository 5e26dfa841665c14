"""Miniatures of public benchmarks in their true layouts, and a model that answers by a script."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmarking import Sitting, sit
from omnidiff_jax.media.audio import wav_bytes, write_wav
from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.registry import Decoding


class Scripted:
    """Answers a request by a function of its text, picture and speech; `bounds` likewise."""

    def __init__(self, said, costs=None):
        self.said, self.costs, self.asked = said, costs, 0

    def __call__(self, chosen, requests):
        for request in requests:
            self.check(chosen, request)
        self.asked += len(requests)
        return [self.said(request) for request in requests]

    def bounds(self, chosen, requests, answers, draws):
        return [
            np.array([self.costs(request, option) for option in options])
            for request, options in zip(requests, answers, strict=True)
        ]

    def decoding(self, chosen):
        return Decoding()

    def check(self, chosen, request):
        request.check(chosen)
        if len(request.text) > 400:
            raise UserError("too long")


def text(function):
    return Scripted(lambda request: Response(text=function(request)))


def png(shade=0):
    return base64.b64decode(picture64(shade))


def picture64(shade=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 40, 3), shade, np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shade(request):
    return int(request.image[0, 0, 0])


def tone(pitch=9.0, seconds=0.2):
    return Waveform(np.sin(np.arange(int(16000 * seconds)) / pitch).astype(np.float32) / 2, 16000)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")


def table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.table(columns), path, row_group_size=2)


def sat(exam, benchmark, data, place, model, **options):
    return sit(exam, benchmark, str(data), place, Sitting("scripted", **options), lambda settings: model)


SPOKEN = {"61-7-0000": "HE HOPED", "61-7-0001": "STUFFED INTO YOU", "84-1-0000": "NO"}


def librispeech(place, layout):
    for number, (name, words) in enumerate(SPOKEN.items()):
        wav, (speaker, chapter, _) = wav_bytes(tone(5.0 + number)), name.split("-")
        if layout == "openslr":
            folder = place / "test-clean" / speaker / chapter
            write(folder / f"{name}.flac", wav)
            with_name = folder / f"{speaker}-{chapter}.trans.txt"
            write(with_name, (with_name.read_text() if with_name.exists() else "") + f"{name} {words}\n")
        elif layout == "lines":
            write(place / "wavs" / f"{name}.wav", wav)
    if layout == "lines":
        turns = [
            {
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}],
                "audios": [f"wavs/{name}.wav"],
            }
            for name, words in SPOKEN.items()
        ]
        write(place / "test.jsonl", "".join(json.dumps(turn) + "\n" for turn in turns))
    if layout == "parquet":
        cells = [{"bytes": wav_bytes(tone(5.0 + number)), "path": None} for number in range(3)]
        parquet(place / "test.parquet", {"id": list(SPOKEN), "text": list(SPOKEN.values()), "audio": cells})
    return place


class Ears:
    """Hears what the pitch of a tone stands for."""

    name = "ears-1"

    def __init__(self, words):
        self.words = words

    def hear(self, speech):
        crossings = int((np.diff(np.signbit(speech.samples)) != 0).sum())
        return min(self.words.items(), key=lambda pair: abs(pair[0] - crossings))[1]


def crossings(pitch):
    return int((np.diff(np.signbit(tone(pitch).samples)) != 0).sum())


SENTENCES = {"61_7_0_0": "He hoped.", "61_7_0_1": "It's two o'clock.", "84_1_0_0": "No one"}


EARS = Ears({crossings(5.0): "He hoped", crossings(9.0): "it's to o'clock", crossings(14.0): "No one"})


def libritts(place, layout):
    pitches = dict(zip(SENTENCES, (5.0, 9.0, 14.0), strict=True))
    if layout == "openslr":
        for name, words in SENTENCES.items():
            folder = place / "test-clean" / "/".join(name.split("_")[:2])
            write(folder / f"{name}.normalized.txt", words)
            write_wav(folder / f"{name}.wav", tone(pitches[name]))
    elif layout == "lines":
        lines = []
        for name, words in SENTENCES.items():
            write_wav(place / "wavs" / f"{name}.wav", tone(pitches[name]))
            asked = {"role": "user", "content": f"Convert the text to speech.\n{words}"}
            lines.append({"messages": [asked, {"role": "assistant", "content": ""}], "audios": [f"wavs/{name}.wav"]})
        write(place / "test.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    else:
        cells = [{"bytes": wav_bytes(tone(pitch)), "path": None} for pitch in pitches.values()]
        parquet(
            place / "x.parquet", {"id": list(SENTENCES), "text_normalized": list(SENTENCES.values()), "audio": cells}
        )
    return place


def replaced(protocol, **changes):
    import dataclasses

    return dataclasses.replace(protocol, **changes)


def mme(place, layout, counts=None):
    """Two pictures a task of two questions each; `counts` questions where given."""
    counts = counts or {"existence": 4, "artwork": 4, "OCR": 4, "code_reasoning": 4}
    rows, number = [], 0
    for task, questions in counts.items():
        for picture in range(questions // 2):
            asked = [
                (
                    f"{task} {picture}: is it {'so' if yes else 'not so'}? Please answer yes or no.",
                    "Yes" if yes else "No",
                )
                for yes in (1, 0)
            ]
            name = f"{picture:04}.png"
            split = layout == "folders" and task == "artwork"
            root = place / "MME_Benchmark_release_version" / task
            if layout == "folders":
                write((root / "images" if split else root) / name, png(picture % 200))
                lines = "".join(f"{question}\t{answer}\n" for question, answer in asked)
                write((root / "questions_answers_YN" if split else root) / f"{picture:04}.txt", lines)
            elif layout == "results":
                write(place / "images" / task / name, png(picture % 200))
                path = place / "eval_tool" / "Your_Results" / f"{task}.txt"
                lines = "".join(f"{name}\t{question}\t{answer}\n" for question, answer in asked)
                write(path, (path.read_text() if path.exists() else "") + lines)
            else:
                for question, answer in asked:
                    # The second question's picture is that of the row before.
                    cell = picture64(picture % 200) if answer == "Yes" else str(number - 1)
                    rows.append([number, cell, question, answer, task, f"{task}/{name}"])
                    number += 1
    if layout == "table":
        table(place / "MME.tsv", ["index", "image", "question", "answer", "category", "image_path"], rows)
    return place


def always_right_but(wrong):
    """Says what is right but of some pictures and the negative questions of others."""

    def said(request):
        right = "No" if "not so" in request.text else "Yes"
        return wrong.get((request.text.split(":")[0], right), f"{right}, it is.")

    return text(said)


def pope(place, layout):
    asked = [("a", "dog", "yes"), ("a", "cat", "no"), ("b", "dog", "no"), ("b", "cup", "yes")]
    for picture in "ab":
        write(place / "val2014" / f"{picture}.jpg", png())
    if layout == "lines":
        for split in ("random", "popular", "adversarial"):
            lines = [
                {
                    "question_id": number,
                    "image": f"{picture}.jpg",
                    "text": f"Is there a {thing} in the image?",
                    "label": label,
                }
                for number, (picture, thing, label) in enumerate(asked, start=1)
            ]
            write(place / f"coco_pope_{split}.json", "".join(json.dumps(line) + "\n" for line in lines))
    else:
        rows = [
            [
                n,
                picture64(),
                f"Is there a {thing} in the image?",
                label.title(),
                "random,popular,adversarial",
                f"{p}.jpg",
            ]
            for n, (p, thing, label) in enumerate(asked)
        ]
        table(place / "POPE.tsv", ["index", "image", "question", "answer", "category", "image_path"], rows)
    return place


def seed(place, layout):
    options = ["red", "green", "blue", "none"]
    kinds = ("chart", "map", "web")
    if layout == "lines":
        questions = [
            {
                "question_id": f"{n}",
                "question": f"colour {n}?",
                **{f"choice_{k}": o for k, o in zip("ABCD", options, strict=True)},
                "answer": "ABC"[n],
                "data_id": f"text_rich/{n}.png",
                "question_image_type": kind.title(),
            }
            for n, kind in enumerate(kinds)
        ]
        write(place / "SEED-Bench-2-plus-text-rich.json", json.dumps({"questions": questions}))
        for n in range(3):
            write(place / "text_rich" / f"{n}.png", png(n))
    else:
        table(
            place / "SEEDBench2_Plus.tsv",
            ["index", "image", "question", *"ABCD", "answer", "category"],
            [[n, picture64(n), f"colour {n}?", *options, "ABC"[n], kind] for n, kind in enumerate(kinds)],
        )
    return place


def coco(place):
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(3)]
    said = [
        {"image_id": n, "id": 10 * n + k, "caption": f"a red circle {'on white' * k}"}
        for n in range(3)
        for k in range(2)
    ]
    write(place / "annotations" / "captions_val2014.json", json.dumps({"images": images, "annotations": said}))
    for n in range(3):
        write(place / "val2014" / f"{n}.png", png(80 * n))
    return place
