"""Public benchmarks end to end on miniatures of their layouts, answered by a script whose right score is known here."""

import base64
import csv
import json

import numpy as np
import pytest
from clip_toys import write_folder
from PIL import Image

from data_pipelines.benchmarks import latency
from data_pipelines.benchmarks.choice import MMMU, SEED2PLUS
from data_pipelines.benchmarks.coco import COCO_S2I, COCO_T2I
from data_pipelines.benchmarks.librispeech import LIBRISPEECH
from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.yes_no import COGNITION, MME, MME_SPOKEN, PERCEPTION, POPE
from experiments import evaluate as evaluate_command
from experiments.public import data_of, protocol_of, share_of
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import benchmarking
from omnidiff_jax.evaluation.benchmark import census
from omnidiff_jax.evaluation.benchmarking import Sitting, check, publish, sit
from omnidiff_jax.evaluation.judges import named
from omnidiff_jax.evaluation.stages import Share
from omnidiff_jax.evaluation.standing import markdown
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
    import io

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


# ---- LibriSpeech ----------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("layout", ["openslr", "parquet", "lines"])
def test_librispeech_by_hand(layout, tmp_path):
    data = librispeech(tmp_path / "data", layout)
    heard = iter(["he ho-ped, too", "into\nyou", ""])
    entry = sat("librispeech", LIBRISPEECH, data, tmp_path / "out", text(lambda request: next(heard)))
    # "HOPED," is not "HOPED"; "too" is put in; "STUFFED" and "NO" are left out: 4 errors in 6 words.
    assert entry["metrics"]["word error rate"] == pytest.approx(400 / 6)
    assert [entry["metrics"][name] for name in ("substitutions", "deletions", "insertions")] == pytest.approx(
        [100 / 6, 200 / 6, 100 / 6]
    )
    (task,) = entry["tasks"].values()
    assert task["ceiling"] == 0 and task["floor"] > 60 and (entry["n"], entry["of"], entry["whole"]) == (3, 3, False)
    exports = tmp_path / "out/benchmarks/librispeech-released/exports"
    assert (exports / "hyp.trn").read_text().splitlines()[1] == "into you (61-7-0001)"
    assert (exports / "released_ref.txt").read_text().startswith("0 HE HOPED\n")


# ---- LibriTTS ---------------------------------------------------------------------------------------------------


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
    else:
        cells = [{"bytes": wav_bytes(tone(pitch)), "path": None} for pitch in pitches.values()]
        parquet(
            place / "x.parquet", {"id": list(SENTENCES), "text_normalized": list(SENTENCES.values()), "audio": cells}
        )
    return place


@pytest.mark.parametrize("layout", ["openslr", "parquet"])
def test_libritts_counts_the_silent_both_ways(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, "judge_for", lambda words, reads: EARS)
    monkeypatch.setitem(LIBRITTS.protocols, "plain", replaced(LIBRITTS.protocols["lmms_eval"], normaliser="plain"))
    data = libritts(tmp_path / "data", layout)

    def said(request):
        return Response(audio={"He hoped.": tone(5.0), "It's two o'clock.": tone(9.0)}.get(request.text))

    entry = sat("libritts", LIBRITTS, data, tmp_path / "out", Scripted(said), protocol="plain")
    # "two" is heard as "to"; "No one" was not said: 1 error in 5 words, and 3 in 7.
    assert entry["metrics"]["word error rate"] == pytest.approx(300 / 7)
    assert entry["metrics"]["word error rate of what has speech"] == pytest.approx(20)
    assert entry["notes"] == {"without speech": 1} and entry["judge"] == "ears-1"
    assert entry["tasks"]["plain"]["ceiling"] == pytest.approx(100 / 7)


def replaced(protocol, **changes):
    import dataclasses

    return dataclasses.replace(protocol, **changes)


# ---- MME, POPE --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("layout", ["folders", "results", "table"])
def test_mme_by_hand(layout, tmp_path):
    data = mme(tmp_path / "data", layout)
    wrong = {("existence 0", "No"): "yes", ("OCR 1", "Yes"): "it is yes", ("artwork 1", "No"): "none\tat\nall"}
    entry = sat("mme", MME, data, tmp_path / "out", always_right_but(wrong))
    # existence: 3 of 4 questions, 1 of 2 pictures = 125; OCR likewise (unread is wrong); artwork 200 ("none" is no).
    assert entry["metrics"]["existence"] == entry["metrics"]["OCR"] == pytest.approx(125)
    assert entry["metrics"]["perception"] == pytest.approx(450) and entry["metrics"]["cognition"] == pytest.approx(200)
    assert entry["unparsed"] == 1 and entry["published"] == []
    task = entry["tasks"]["released"]
    assert task["ceiling"] == 600 and task["floor"] < 450
    lines = (tmp_path / "out/benchmarks/mme-released/exports/mme/artwork.txt").read_text().splitlines()
    assert [len(line.split("\t")) for line in lines] == [4] * 4 and lines[3].endswith("\tNo\tnone at all")


def test_mme_in_full_is_set_beside_what_was_published(tmp_path):
    data = mme(tmp_path / "data", "table", {**PERCEPTION, **COGNITION})
    model = text(lambda request: "Yes")
    entry = sat("mme", MME, data, tmp_path / "out", model, rows=512)
    assert (entry["n"], entry["of"], model.asked, entry["whole"]) == (2374, 2374, 2374, True)
    assert entry["metrics"]["perception"] == pytest.approx(500)  # of a constant answer
    assert [one["value"] for one in entry["published"]] == [1216.7, 1176.1, 1733.6]
    told = publish(tmp_path / "out", {"mme": entry}, 0)
    assert "1216.7 (Omni-Diffusion v1)" in told and "2374 of 2374" in told
    assert "| mme | perception | 1216.7 (Omni-Diffusion v1)" in (tmp_path / "out/benchmarks.md").read_text()
    assert "Beside what was published" in (tmp_path / "out/report.html").read_text()
    part = sat("mme", MME, data, tmp_path / "part", text(lambda request: "No"), limit=4)
    assert part["published"] == [] and part["n"] == 56
    assert "not set beside a part" in publish(tmp_path / "part", {"mme": part}, 0)


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


@pytest.mark.parametrize("layout", ["lines", "table"])
def test_pope_by_hand(layout, tmp_path):
    data = pope(tmp_path / "data", layout)
    model = text(lambda request: "Yes" if "dog" in request.text else "I see none")
    entry = sat("pope", POPE, data, tmp_path / "out", model)
    # POPE reads "I see none" as yes: all four are yes, two rightly: precision 1/2, recall 1.
    assert entry["metrics"]["F1"] == entry["metrics"]["mean F1 of the splits"] == pytest.approx(200 / 3)
    assert entry["metrics"]["yes ratio"] == 100 and entry["n"] == 12
    other = sat("pope", POPE, data, tmp_path / "out", model, protocol="vlmevalkit")
    # Unknown is wrong, and not yes: one hit of two there, one false alarm; 1 of 4 right.
    assert other["metrics"]["F1"] == pytest.approx(50) and other["metrics"]["accuracy"] == 25 and other["unparsed"] == 6
    answers = (tmp_path / "out/benchmarks/pope-paper/exports/coco_pope_random_answers.json").read_text().splitlines()
    assert json.loads(answers[1])["answer"] == "I see none" and len(answers) == 4


def test_the_older_file_of_pope_is_whole():
    assert 2910 in POPE.counts["random"] and POPE.counts["popular"] == (3000,)


def test_spoken_mme_reads_its_manifest(tmp_path, monkeypatch):
    data = mme(tmp_path / "data", "folders", {"existence": 4, "OCR": 2})
    write_wav(data / "a.wav", tone(5.0))
    rows = [["existence", "0000.png", 1], ["existence", "0000.png", 2], ["OCR", "0000.png", 1]]
    write(data / "spoken.tsv", "".join("\t".join(map(str, [*row, "a.wav"])) + "\n" for row in rows))
    entry = sat("mme_spoken", MME_SPOKEN, data, tmp_path / "out", text(lambda request: "... Yes"))
    assert entry["n"] == 3 and entry["metrics"]["existence"] == pytest.approx(50) and entry["metrics"]["OCR"] == 200
    write(data / "spoken.tsv", "existence\t0009.png\t1\ta.wav\n")
    with pytest.raises(UserError, match="1 lines name no question"):
        list(MME_SPOKEN.read(str(data), MME_SPOKEN.protocols["text_answer"]))


# ---- multiple choice ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("layout", ["lines", "table"])
def test_seed_bench_by_hand(layout, tmp_path):
    data = seed(tmp_path / "data", layout)
    said = {0: "A.", 1: "It is green", 2: "who knows"}
    entry = sat("seed2plus", SEED2PLUS, data, tmp_path / "out", text(lambda request: said[shade(request)]))
    assert entry["metrics"]["accuracy"] == pytest.approx(200 / 3) and entry["unparsed"] == 1
    assert entry["metrics"]["web"] == 0 and not entry["whole"]
    model = Scripted(None, lambda request, option: (len(option), 2))
    ranked = sat("seed2plus", SEED2PLUS, data, tmp_path / "out", model, protocol="likelihood")
    assert ranked["metrics"]["accuracy"] == pytest.approx(100 / 3) and ranked["unparsed"] == 0  # "red" is shortest


def test_mmmu_by_hand(tmp_path):
    cell = {"bytes": png(), "path": None}
    parquet(
        tmp_path / "data" / "Art" / "validation-00000-of-00001.parquet",
        {
            "id": ["validation_Art_1", "validation_Art_2", "validation_Art_3"],
            "question": ["<image 1> which?", "<image 1> and <image 2>?", "how many?"],
            "options": ["['red dog', \"it's\"]", "['a', 'b', 'c']", "[]"],
            "answer": ["B", "C", "['4', 'four']"],
            "image_1": [cell] * 3,
            "image_2": [None, cell, None],
        },
    )
    said = {"which": "(A) or (B)", "and": "no idea", "many": "so it is four."}
    model = text(lambda request: next(answer for word, answer in said.items() if word in request.text))
    entry = sat("mmmu", MMMU, tmp_path / "data", tmp_path / "out", model)
    assert entry["metrics"]["accuracy"] == pytest.approx(200 / 3) and entry["unparsed"] == 1
    assert entry["notes"] == {"with several pictures, of which one was shown": 1}
    told = json.loads((tmp_path / "out/benchmarks/mmmu-paper/exports/answers.json").read_text())
    assert told == {"validation_Art_1": "B", "validation_Art_2": "no idea", "validation_Art_3": "so it is four."}
    write(tmp_path / "kit.tsv", "")
    rows = [
        [1, "validation_Art_1", picture64(), "which?", "red", "Other Answers", "A", "Art", "validation"],
        [2, "dev_Art_1", picture64(), "?", "x", "y", "A", "Art", "dev"],
    ]
    table(
        tmp_path / "kit" / "MMMU_DEV_VAL.tsv",
        ["index", "id", "image", "question", "A", "B", "answer", "category", "split"],
        rows,
    )
    assert [item.name for item in MMMU.read(str(tmp_path / "kit"), MMMU.protocols["vlmevalkit"])] == [
        "validation_Art_1"
    ]


# ---- COCO -----------------------------------------------------------------------------------------------------------


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


def test_coco_by_clip(tmp_path):
    data = coco(tmp_path / "data")
    judge = f"clip:{write_folder(tmp_path / 'clip')}"

    def drawn(request):
        return Response(image=None if "white" in request.text else np.full((24, 40, 3), 80, np.uint8))

    entry = sat("coco_t2i", COCO_T2I, data, tmp_path / "out", Scripted(drawn), judges=(judge,))
    opened = named.open_judge(judge, "picture")
    items = list(COCO_T2I.read(str(data), COCO_T2I.protocols["paper"]))
    assert len({item.cluster for item in items}) == 3  # one caption of each picture
    expected = [
        0.0
        if "white" in item.text
        else float(opened.of_picture(np.full((24, 40, 3), 80, np.uint8)) @ opened.of_text(item.text))
        for item in items
    ]
    assert entry["metrics"]["CLIP-T"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert entry["notes"]["without a picture"] == expected.count(0.0) and entry["judge"] == opened.name
    assert entry["tasks"]["paper"]["also"][0]["ceiling"] == pytest.approx(1, abs=1e-5)
    write(data / "subset.csv", "2,21\n0,0\n")
    assert [item.name for item in COCO_T2I.read(str(data), COCO_T2I.protocols["paper"])] == ["21", "0"]
    write(data / "subset.csv", "7,7\n")
    with pytest.raises(UserError, match="1 of 1 captions are not there"):
        list(COCO_T2I.read(str(data), COCO_T2I.protocols["paper"]))


def test_spoken_coco_has_its_wavs(tmp_path):
    data = coco(tmp_path / "data")
    write_wav(data / "wavs" / "u.wav", tone())
    said = {"data": [{"image": "val2014/1.png", "captions": [{"text": "a circle", "wav": "wavs/u.wav", "uttid": "u"}]}]}
    write(data / "SpokenCOCO_val.json", json.dumps(said))
    (item,) = COCO_S2I.read(str(data), COCO_S2I.protocols["paper"])
    assert (item.task, item.text, item.truth["answer"]) == ("s2i", "", "a circle")
    assert len(item.request("coco_s2i").audio.samples) == 3200 and item.reference.read() == png(80)


# ---- stages ---------------------------------------------------------------------------------------------------------


def without_times(folder):
    found = json.loads((folder / "score.json").read_text())
    return found | {"seconds": 0}


def test_stopped_anywhere_and_gone_on_with_by_others_the_score_is_the_same(tmp_path):
    data = mme(tmp_path / "data", "table")
    wrong = {("existence 0", "No"): "yes"}
    sat("mme", MME, data, tmp_path / "whole", always_right_but(wrong))

    class Killed(Exception):
        pass

    model, broken = always_right_but(wrong), always_right_but(wrong)
    broken.said = lambda request: (_ for _ in ()).throw(Killed) if "OCR" in request.text else model.said(request)
    for number in range(3):
        with pytest.raises(Killed):
            sat("mme", MME, data, tmp_path / "parts", broken, share=Share(number, 3), through=("generate",), rows=2)
    place = tmp_path / "parts" / "benchmarks" / "mme-released"
    torn = place / "answers.1-of-3.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"split": "OCR", "na')  # a process that died in a write
    before = sum(path.read_bytes().count(b"\n") for path in place.glob("answers.*"))
    assert 0 < before < 16
    for number in range(2):  # two go on where three were
        sat("mme", MME, data, tmp_path / "parts", model, share=Share(number, 2), through=("generate",), rows=3)
    assert model.asked == 16 - before
    idle = text(None)
    sat("mme", MME, data, tmp_path / "parts", idle, through=("score",))
    assert idle.asked == 0 and without_times(place) == without_times(tmp_path / "whole" / "benchmarks" / "mme-released")


def test_answers_of_another_model_or_other_data_are_not_mixed(tmp_path):
    data = mme(tmp_path / "data", "table")
    model = text(lambda request: "yes")
    sat("mme", MME, data, tmp_path / "out", model)
    with pytest.raises(UserError, match="another model"):
        sit("mme", MME, str(data), tmp_path / "out", Sitting("other"), lambda settings: model)
    mme(tmp_path / "data", "table", {"existence": 2})
    with pytest.raises(UserError, match="another data"):
        sat("mme", MME, data, tmp_path / "out", model)
    with pytest.raises(UserError, match="answers to other data"):
        sat("mme", MME, data, tmp_path / "out", model, through=("score",))


def test_half_a_data_set_is_named_before_anything_is_asked(tmp_path):
    data = mme(tmp_path / "data", "folders")
    (data / "MME_Benchmark_release_version" / "OCR" / "0001.png").unlink()
    told = check("mme", MME, str(data))
    assert "existence has 4 items, the whole benchmark 60" in told and "2 media are missing" in told
    assert "0001" in told and "to be had from github.com" in told
    with pytest.raises(UserError, match="2 of 16 items cannot be read"):
        sat("mme", MME, data, tmp_path / "out", text(lambda request: "yes"))
    with pytest.raises(UserError, match="none of the layouts"):
        check("mme", MME, str(tmp_path / "data" / "MME_Benchmark_release_version" / "OCR"))
    with pytest.raises(UserError, match="does not exist"):
        check("pope", POPE, str(tmp_path / "nowhere"))


def test_what_the_model_cannot_be_asked_is_counted(tmp_path, capsys):
    data = pope(tmp_path / "data", "lines")
    path = data / "coco_pope_random.json"
    path.write_text(path.read_text().replace("cup in the", f"cup {'very ' * 90}in the"))
    entry = sat("pope", POPE, data, tmp_path / "out", text(lambda request: "yes"))
    assert (entry["n"], entry["of"], entry["skipped"], entry["whole"]) == (11, 12, 1, False)
    assert "1 items are more than the model takes and are passed over; random, 4: too long" in capsys.readouterr().err


def test_what_is_there_twice_is_refused(tmp_path):
    data = pope(tmp_path / "data", "lines")
    path = data / "coco_pope_random.json"
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match=r"random, 1: there twice"):
        census(POPE, list(POPE.read(str(data), POPE.protocols["paper"])))


@pytest.mark.parametrize(
    ("word", "reads", "fault"),
    [
        ("whisperer:x", "speech", "did you mean 'whisper'"),
        ("clip:x", "speech", "needs one of speech: whisper, pocketsphinx"),
        ("whisper", "speech", "name a folder of Whisper"),
        ("whisper:/nowhere", "speech", "is no folder"),
        ("pocketsphinx:x", "speech", "takes nothing"),
    ],
)
def test_judges_that_cannot_be(word, reads, fault):
    with pytest.raises(UserError, match=fault):
        named.open_judge(word, reads)


def test_a_judge_of_another_model(tmp_path):
    with pytest.raises(UserError, match="is no Whisper"):
        named.open_judge(f"whisper:{write_folder(tmp_path / 'clip')}", "speech")
    with pytest.raises(UserError, match="--judge is missing"):
        named.judge_for([], "picture")
    assert named.judge_for([], "") is None


# ---- time and command line --------------------------------------------------------------------------------------


def test_latencies_are_medians_without_the_first(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 23, 30, 34, 40, 48, 50, 52, 60, 62, 70, 74])
    asked = []

    def opened(settings):
        ((name, decoding),) = settings.items()
        asked.append((name, decoding.sampler.steps, decoding.sampler.steps_per_token))
        return Scripted(lambda request: Response(audio=tone(seconds=2.0)))

    rows = (latency.ROWS[2], latency.ROWS[6])
    entry = latency.measure(opened, 3, rows, clock=lambda: next(ticks))
    assert asked == [("t2i", 10, 1.0), ("tts", None, 0.125)]
    assert entry["metrics"] == {rows[0].metric: 3, rows[1].metric: 1}  # of 2, 3, 4 s; of 2, 2, 4 s for 2 s of speech
    assert entry["notes"] == {f"compilation of {rows[0].metric}": 6, f"compilation of {rows[1].metric}": 6}
    assert [one["value"] for one in entry["published"]] == [1.29, 0.341]
    assert "1.29 (Omni-Diffusion (ICML))" in markdown({"latency": entry})


def test_data_by_exam(tmp_path):
    (tmp_path / "mme").mkdir()
    found = data_of(["mme", "pope"], [str(tmp_path)])
    assert found == {"mme": f"{tmp_path}/mme", "pope": str(tmp_path)}
    assert data_of(["mme", "pope"], ["mme=/a", "pope=/b=c"]) == {"mme": "/a", "pope": "/b=c"}
    with pytest.raises(UserError, match="--exam=pope needs --data: a folder with coco_pope"):
        data_of(["mme", "pope"], ["mme=/a"])
    with pytest.raises(UserError, match="told apart by exam"):
        data_of(["mme", "pope"], ["/a", "/b"])
    assert [protocol_of(exam, ["paper", "mme=released"]) for exam in ("mme", "pope")] == ["released", "paper"]
    assert share_of("1/4") == Share(1, 4)
    for word in ("4/4", "1", "a/b"):
        with pytest.raises(UserError, match="must be I/N"):
            share_of(word)


def test_the_command_counts_before_it_asks(tmp_path, capsys):
    data = mme(tmp_path / "data", "table")
    evaluate_command.COMMAND.call(evaluate_command.run, ["--exam=mme", f"--data={data}", "--dry_run"])
    assert "mme: 16 items (existence 4, artwork 4, OCR 4, code_reasoning 4)" in capsys.readouterr().out
    for words, fault in (
        (["--exam=mme", f"--data={data}", "--dry_run", "--protocol=paper"], "unknown protocol of mme 'paper'"),
        (["--exam=mmee", "--dry_run"], "did you mean 'mme'"),
        (["--exam=scenes", "--dry_run"], "--dry_run looks at"),
        (["--exam=mme", f"--data={data}", "--model=nano"], "--out is missing"),
        (["--exam=mme", f"--data={data}", f"--out={tmp_path}", "--stage=scroe"], "did you mean 'score'"),
    ):
        with pytest.raises(UserError, match=fault):
            evaluate_command.COMMAND.call(evaluate_command.run, words)
