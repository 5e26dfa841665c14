"""Public benchmarks end to end on miniatures of their layouts, answered by a script whose right score is known here."""

import io
import json

import numpy as np
import pytest
from benchmark_toys import (
    EARS,
    Scripted,
    always_right_but,
    coco,
    librispeech,
    libritts,
    mme,
    parquet,
    picture64,
    png,
    pope,
    replaced,
    sat,
    seed,
    shade,
    table,
    text,
    tone,
    write,
)
from clip_toys import write_folder

from data_pipelines.benchmarks.choice import MMMU, SEED2PLUS
from data_pipelines.benchmarks.coco import COCO_S2I, COCO_T2I
from data_pipelines.benchmarks.librispeech import LIBRISPEECH
from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.yes_no import COGNITION, MME, MME_SPOKEN, PERCEPTION, POPE
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import benchmarking
from omnidiff_jax.evaluation.benchmark import Item, census
from omnidiff_jax.evaluation.benchmarking import publish
from omnidiff_jax.evaluation.judges import named
from omnidiff_jax.evaluation.sheets import workbook
from omnidiff_jax.media.audio import write_wav


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
    assert (exports / "released_hyp.txt").read_text().startswith("0 he hoped, too\n1 into you\n2 \n")
    assert json.loads((exports / "released_hyp_ref.json").read_text())[2] == ["", "NO"]
    errors = [line.split("\t") for line in (exports / "utterances.tsv").read_text().splitlines()[1:]]
    assert errors == [["61-7-0000", *"2101"], ["61-7-0001", *"3010"], ["84-1-0000", *"1010"]]


@pytest.mark.parametrize("layout", ["openslr", "parquet", "lines"])
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
    table = (tmp_path / "out/benchmarks/mme-released/exports/vlmevalkit.tsv").read_text().splitlines()
    assert [len(line.split("\t")) for line in table] == [5] * 17 and table[8].endswith("\tno\tnone at all")


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
    assert "| released | released (vqa: L 64, T 1 L) | mme |" in (tmp_path / "out/benchmarks.md").read_text()
    assert "Beside what was published" in (tmp_path / "out/report.html").read_text()
    part = sat("mme", MME, data, tmp_path / "part", text(lambda request: "No"), limit=4)
    assert part["published"] == [] and part["n"] == 56
    assert "not set beside a part" in publish(tmp_path / "part", {"mme": part}, 0)


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


@pytest.mark.parametrize(
    ("random", "popular", "wrong"),
    [
        (3000, 3000, ()),
        (2910, 3000, ()),  # an older file, which LLaVA's numbers are of
        (2909, 3000, ("random has 2909 items, the whole benchmark 3000 or 2910",)),
        (3000, 2910, ("popular has 2910 items, the whole benchmark 3000",)),
        (3000, 0, ("popular has 0 items, the whole benchmark 3000",)),
    ],
)
def test_both_editions_of_pope_are_whole(random, popular, wrong):
    counts = {"random": random, "popular": popular, "adversarial": 3000}
    # Numbers begin anew in every file.
    items = [Item(split, str(n), "vqa", truth={"answer": "no"}) for split, of in counts.items() for n in range(of)]
    found = census(POPE, items)
    assert found.wrong == wrong and found.whole == (not wrong)


def karpathy(place):
    """The file and a picture of each split, of which `test` alone is read."""
    images = [
        {"cocoid": n, "filename": f"{n}.png", "split": split, "sentences": [{"sentid": 7 + n, "raw": f"a {split}"}]}
        for n, split in enumerate(("test", "val", "restval"))
    ]
    write(place / "dataset_coco.json", json.dumps({"images": images}))
    write(place / "val2014" / "0.png", png())
    return place


def as_a_list(place):
    path = seed(place, "lines") / "SEED-Bench-2-plus-text-rich.json"
    write(path, json.dumps(json.loads(path.read_text())["questions"]))
    return place


def of_2017(place):
    (coco(place) / "val2014").rename(place / "val2017")
    (place / "annotations" / "captions_val2014.json").rename(place / "captions_val2017.json")
    write(place / "subset.csv", "1,10\n")
    return place


def nested(place):
    inner = place / "MME_Benchmark_release_version"
    (mme(place, "folders", {"OCR": 2}) / "MME_Benchmark_release_version").rename(place / "MME_Benchmark")
    inner.mkdir()
    (place / "MME_Benchmark").rename(inner / "MME_Benchmark")
    return place


@pytest.mark.parametrize(
    ("benchmark", "written", "names"),
    [
        (SEED2PLUS, as_a_list, ["0", "1", "2"]),
        (COCO_T2I, karpathy, ["7"]),
        (COCO_T2I, of_2017, ["10"]),
        (MME, nested, ["0000.png 1", "0000.png 2"]),
    ],
)
def test_other_forms_of_a_layout(benchmark, written, names, tmp_path):
    items = list(benchmark.read(str(written(tmp_path)), next(iter(benchmark.protocols.values()))))
    assert [item.name for item in items] == names
    assert not census(benchmark, items).absent and all(medium.read() for item in items for medium in item.media())


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
            "options": ["['red dog', \"it's\"]", "['a', 'b', 'c', 'd', 'e']", "[]"],
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
    kit = (tmp_path / "out/benchmarks/mmmu-paper/exports/vlmevalkit.tsv").read_text().splitlines()
    assert kit[0].split("\t")[3:8] == list("ABCDE") and kit[2].split("\t")[3:9] == [*"abcde", "C"]
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


def test_a_sheet_holds_answers_as_they_are():
    openpyxl = pytest.importorskip("openpyxl")
    odd = ["=1+1", "one\ttwo\nthree", "bell\x07", "é" * 40000, ""]
    book = openpyxl.load_workbook(io.BytesIO(workbook([["index", "prediction"], *[["1", text] for text in odd]])))
    cells = [row[1] for row in book.active.iter_rows(min_row=2)]
    assert [cell.value for cell in cells] == ["=1+1", odd[1], "bell", "é" * 32767, None]
    assert cells[0].data_type == "s"  # no formula


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
