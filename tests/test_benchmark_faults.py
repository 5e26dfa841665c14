"""Damaged and odd benchmark data: every fault is one line that names the file, and one bad medium is not the end."""

import json

import numpy as np
import pytest
from benchmark_toys import (
    EARS,
    SENTENCES,
    Scripted,
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

from data_pipelines.benchmarks import files
from data_pipelines.benchmarks.choice import MMMU, SEED2PLUS
from data_pipelines.benchmarks.coco import COCO_S2I, COCO_T2I
from data_pipelines.benchmarks.librispeech import LIBRISPEECH
from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.speech import of_test_clean
from data_pipelines.benchmarks.yes_no import MME, MME_SPOKEN, POPE
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import benchmarking
from omnidiff_jax.evaluation.judges.clip import ClipJudge
from omnidiff_jax.evaluation.lines import LineWriter, read_lines
from omnidiff_jax.evaluation.places import open_place
from omnidiff_jax.media.audio import wav_bytes


def read(benchmark, place):
    return list(benchmark.read(str(place), next(iter(benchmark.protocols.values()))))


# ---- odd shapes ------------------------------------------------------------------------------------------------

SEED_FILE = "SEED-Bench-2-plus-text-rich.json"
CAPTIONS = "annotations/captions_val2014.json"


@pytest.mark.parametrize(
    ("benchmark", "file", "content", "fault"),
    [
        (LIBRISPEECH, "a.jsonl", "[1]\n", "line 1: must have messages"),
        (LIBRISPEECH, "a.jsonl", '{"audios": ["a.wav"], "messages": [{}, 7]}\n', "line 1: must have messages"),
        (LIBRISPEECH, "a.jsonl", '{"audios": ["/etc/a.wav"], "messages": [{}, {"content": "x"}]}\n', "is absolute"),
        (LIBRISPEECH, "a.jsonl", b'{}\n\xff{"a": 1}\n', "line 1: must have messages"),
        (LIBRISPEECH, "1/1/1-1.trans.txt", b"1-1-0000 A\n1-1-0001 \xff\n", "line 2: not UTF-8"),
        (LIBRISPEECH, "1/1/1-1.trans.txt", "1-1-0000\n", "line 1: must be `ID TEXT`"),
        (LIBRISPEECH, "1/1/1-1.trans.txt", "../../../x A\n", "leads out of"),
        (LIBRITTS, "a.jsonl", '{"audios": [], "messages": [{"content": "x"}]}\n', "line 1: must have messages"),
        (POPE, "coco_pope_random.json", "3\n", "line 1: must have question_id, text, image and label"),
        (POPE, "coco_pope_random.json", "[" * 200000 + "\n", "line 1: not JSON"),
        (
            POPE,
            "coco_pope_random.json",
            '{"question_id": 1, "image": "a.jpg", "text": "q", "label": "maybe"}\n',
            "line 1: the right answer must be yes or no, it is 'maybe'",
        ),
        (POPE, "POPE.tsv", "index\tquestion\tanswer\tcategory\n1\tq\tYes\trandom\n", "nothing in column 'image'"),
        (POPE, "POPE.tsv", "index\timage\tquestion\tanswer\tcategory\n1\t\tq\tYes\trandom\n", "column 'image'"),
        (MME, "MME.tsv", "index\timage\n1\t\n", "no column 'image_path'"),
        (MME, "OCR/1.txt", b"q\tYes\n\xff\tNo\n", "line 2: not UTF-8"),
        (MME, "OCR/1.txt", "q Yes\n", "QUESTION and Yes or No"),
        (MME_SPOKEN, "spoken.tsv", "OCR\t1.png\tone\ta.wav\n", "line 1: must have TASK, FILE, LINE"),
        (MME_SPOKEN, "spoken.tsv", b"OCR\t1.png\t1\t\xff\n", "line 1: not UTF-8"),
        (SEED2PLUS, SEED_FILE, "3", "must have a list of questions"),
        (SEED2PLUS, SEED_FILE, '{"data": []}', "must have a list of questions"),
        (SEED2PLUS, SEED_FILE, "[[]]", "question 1: must have question_id"),
        (SEED2PLUS, SEED_FILE, b"\xff", "not JSON"),
        (COCO_T2I, "dataset_coco.json", "[]", "must have images: cocoid"),
        (COCO_T2I, "dataset_coco.json", '{"images": [{"split": "test", "cocoid": 1}]}', "must have images: cocoid"),
        (COCO_T2I, "dataset_coco.json", '{"images": [5]}', "must have images: cocoid"),
        (COCO_T2I, CAPTIONS, "[]", "must have images of id"),
        (COCO_T2I, CAPTIONS, '{"images": [3], "annotations": []}', "must have images of id"),
        (COCO_S2I, "SpokenCOCO_val.json", "[]", "must have data: image"),
        (COCO_S2I, "SpokenCOCO_val.json", '{"data": [{"image": "a"}]}', "must have data: image"),
        (COCO_S2I, "SpokenCOCO_val.json", '{"data": [{"image": "a", "captions": ["x"]}]}', "must have data: image"),
    ],
)
def test_odd_shapes_are_one_line(benchmark, file, content, fault, tmp_path):
    write(tmp_path / file, content)
    with pytest.raises(UserError, match=fault) as error:
        read(benchmark, tmp_path)
    assert file.split("/")[-1] in str(error.value) or "absolute" in fault or "leads" in fault


def test_a_subset_that_is_no_list_of_pairs(tmp_path):
    data = coco(tmp_path)
    write(data / "subset.csv", "0,0\n1\n")
    with pytest.raises(UserError, match="line 2: must have IMAGE_ID,CAPTION_ID"):
        read(COCO_T2I, data)


@pytest.mark.parametrize("options", ["3", "['a'", "{[]: 1}", "(" * 3000])
def test_options_that_are_no_list(options, tmp_path):
    columns = {"id": ["validation_Art_1"], "question": ["q"], "options": [options], "answer": ["A"]}
    parquet(tmp_path / "validation-0.parquet", columns)
    with pytest.raises(UserError, match="options are no list"):
        read(MMMU, tmp_path)


def test_a_damaged_page_of_parquet(tmp_path):
    data = libritts(tmp_path, "parquet")
    whole = (data / "x.parquet").read_bytes()
    items = read(LIBRITTS, data)
    middle = whole.index(b"RIFF")
    (data / "x.parquet").write_bytes(
        whole[: middle - 40] + bytes(255 - byte for byte in whole[middle - 40 : middle + 60]) + whole[middle + 60 :]
    )
    files._column.cache_clear()
    with pytest.raises(UserError, match="is no whole parquet file"):
        items[0].reference.read()
    middle = whole.index(b"He hoped.")
    (data / "x.parquet").write_bytes(whole[: middle - 40] + b"\xff" * 80 + whole[middle + 40 :])
    with pytest.raises(UserError, match="is no whole parquet file"):
        read(LIBRITTS, data)


def test_a_config_of_clip_that_is_a_list(tmp_path):
    folder = write_folder(tmp_path / "clip")
    for content in (
        "[1]",
        '{"model_type": "clip", "text_config": [1]}',
        '{"model_type": "clip", "projection_dim": []}',
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json"):
            ClipJudge(folder)


# ---- what is read of a whole download --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "read_of_it"),
    [
        (["clean/test-0.parquet", "clean/train.100-0.parquet", "other/test-0.parquet"], ["clean/test-0.parquet"]),
        (
            ["all/test.clean/0.parquet", "all/test.other/0.parquet", "clean/test/0.parquet"],
            ["all/test.clean/0.parquet"],
        ),
        (["test.clean-0.parquet", "test.clean-1.parquet"], ["test.clean-0.parquet", "test.clean-1.parquet"]),
        (["data/test-0.parquet", "data/validation-0.parquet"], ["data/test-0.parquet"]),
        (["dev-clean/1-1.trans.txt", "train-clean-100/2-2.trans.txt"], []),
        (["test-clean/1-1.trans.txt", "test-other/2-2.trans.txt"], ["test-clean/1-1.trans.txt"]),
        (["x.parquet", "y.parquet"], ["x.parquet", "y.parquet"]),
    ],
)
def test_only_test_clean_is_read_of_a_download(there, read_of_it, tmp_path):
    place = tmp_path / "other corpora"
    assert of_test_clean(place, [place / name for name in there]) == [place / name for name in read_of_it]


def test_parquet_of_a_download_is_read_once(tmp_path):
    for name in ("all/test.clean/0.parquet", "clean/test/0.parquet", "clean/train.100/0.parquet"):
        cells = [{"bytes": wav_bytes(tone()), "path": None}] * 3
        columns = {"id": list(SENTENCES), "text_normalized": list(SENTENCES.values()), "audio": cells}
        parquet(tmp_path / name, columns)
    assert [item.name for item in read(LIBRITTS, tmp_path)] == list(SENTENCES)


def test_several_pictures_in_a_cell(tmp_path):
    lists = [str([picture64(7), picture64(9)]), json.dumps([picture64(3)]), picture64(5)]
    rows = [[n, cell, "which?", "red", "blue", "A", "Art", "validation"] for n, cell in enumerate(lists)]
    header = ["index", "image", "question", "A", "B", "answer", "category", "split"]
    table(tmp_path / "MMMU_DEV_VAL.tsv", header, rows)
    items = read(MMMU, tmp_path)
    assert [shade(item.request("mmmu")) for item in items] == [7, 3, 5]
    assert [item.truth["pictures"] for item in items] == [2, 1, 1]
    entry = sat("mmmu", MMMU, tmp_path, tmp_path / "out", text(lambda request: "A"))
    assert entry["notes"] == {"with several pictures, of which one was shown": 1}


# ---- one bad medium --------------------------------------------------------------------------------------------


def test_a_reference_that_cannot_be_read_is_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarking, "judge_for", lambda words, reads: EARS)
    monkeypatch.setitem(LIBRITTS.protocols, "plain", replaced(LIBRITTS.protocols["lmms_eval"], normaliser="plain"))
    data = libritts(tmp_path / "data", "openslr")
    wavs = sorted(data.rglob("*.wav"))
    whole = wavs[0].read_bytes()
    wavs[0].write_bytes(b"RIFF")
    model = Scripted(lambda request: Response(audio=tone(5.0)))
    entry = sat("libritts", LIBRITTS, data, tmp_path / "out", model, protocol="plain")
    assert (entry["n"], entry["skipped"]) == (3, 0) and entry["notes"]["references that cannot be read"] == 1
    assert "1 references cannot be read" in capsys.readouterr().err
    wavs[0].write_bytes(whole)  # copied again: it is heard now
    entry = sat("libritts", LIBRITTS, data, tmp_path / "out", model, protocol="plain")
    assert "references that cannot be read" not in entry["notes"]
    for wav in wavs[:2]:
        wav.write_bytes(b"RIFF")
    with pytest.raises(UserError, match="2 of 3 references cannot be read; the last: test-clean, 61_7_0_1"):
        sat("libritts", LIBRITTS, data, tmp_path / "new", model, protocol="plain")


def test_a_picture_without_its_reference_is_passed_over(tmp_path):
    data, judge = coco(tmp_path / "data"), f"clip:{write_folder(tmp_path / 'clip')}"
    (data / "val2014" / "1.png").write_bytes(png()[:60])
    model = Scripted(lambda request: Response(image=np.full((24, 40, 3), 80, np.uint8)))
    entry = sat("coco_t2i", COCO_T2I, data, tmp_path / "out", model, judges=(judge,))
    assert (entry["n"], entry["skipped"]) == (2, 1) and entry["notes"]["references that cannot be read"] == 1
    assert entry["tasks"]["paper"]["ceiling"] > 0 and not entry["whole"]


# ---- two writers -----------------------------------------------------------------------------------------------


def test_a_second_writer_of_one_share_is_refused(tmp_path):
    place = open_place(tmp_path)
    with LineWriter(place, "answers", "0-of-1") as lines:
        lines.add(("a", "1"), {"text": "x"})
        with pytest.raises(UserError, match="another process writes"):
            LineWriter(place, "answers", "0-of-1")
        with LineWriter(place, "answers", "1-of-2"):
            pass
    with LineWriter(place, "answers", "0-of-1"):
        pass
    assert read_lines(place, "answers") == {("a", "1"): {"split": "a", "name": "1", "text": "x"}}


def test_tables_are_found_in_one_way(tmp_path):
    place = pope(tmp_path / "a", "table")
    assert files.table_in(place, "POPE.tsv") == files.table_in(place / "POPE.tsv", "MME.tsv") == place / "POPE.tsv"
    assert files.table_in(seed(tmp_path / "b", "lines"), "POPE.tsv") is None
    assert read(MME, mme(tmp_path / "c", "table") / "MME.tsv")


def test_an_empty_reference_is_counted(tmp_path):
    cells = [{"bytes": wav_bytes(tone(5.0 + number)), "path": None} for number in range(3)]
    columns = {"id": ["1-1-0", "1-1-1", "1-1-2"], "text": ["RED", "", "BLUE BLUE"], "audio": cells}
    parquet(tmp_path / "data" / "test.parquet", columns)
    answers = iter(["red", "one two", "blue\tred\nblue"])
    entry = sat("librispeech", LIBRISPEECH, tmp_path / "data", tmp_path / "out", text(lambda request: next(answers)))
    # Nothing was said, two words were heard; and one too many in the third: 3 errors in 3 words.
    assert entry["metrics"]["word error rate"] == pytest.approx(100) and entry["notes"] == {"empty references": 1}
    task = entry["tasks"]["released"]
    assert task["interval"][0] < 100 < task["interval"][1]  # of one speaker: his sentences are drawn, not he


def test_one_picture_that_cannot_be_read_is_counted(tmp_path):
    data = pope(tmp_path / "data", "lines")
    wrong = data / "val2014" / "b.jpg"
    wrong.write_bytes(png()[:50])
    with pytest.raises(UserError, match=r"2 of 12 items cannot be read; the last: .*copy the data again"):
        sat("pope", POPE, data, tmp_path / "out", text(lambda request: "yes"))
    for split in ("random", "popular", "adversarial"):  # 120 questions about a whole picture, one about the other
        lines = [{"question_id": n, "image": "a.jpg", "text": f"Is there a {n}?", "label": "yes"} for n in range(40)]
        lines += [{"question_id": 99, "image": "b.jpg", "text": "Is there a dog?", "label": "yes"}] * (
            split == "random"
        )
        write(data / f"coco_pope_{split}.json", "".join(json.dumps(line) + "\n" for line in lines))
    entry = sat("pope", POPE, data, tmp_path / "new", text(lambda request: "yes"))
    assert (entry["n"], entry["of"], entry["skipped"], entry["whole"]) == (120, 121, 1, False)


def test_half_a_character_is_a_question_mark(tmp_path):
    """Escapes of JSON can say what no file can hold; an answer may be cut within a character too."""
    data = pope(tmp_path / "data", "lines")
    for path in data.glob("coco_pope_*.json"):
        path.write_text(path.read_text().replace("a dog in", "a \\ud83d dog \\ud83d\\ude00 in"))
    entry = sat("pope", POPE, data, tmp_path / "out", text(lambda request: "yes \ud83d"))
    told = (tmp_path / "out/benchmarks/pope-paper/exports/coco_pope_random_answers.json").read_text().splitlines()
    assert json.loads(told[0])["question"] == "Is there a ? dog \U0001f600 in the image?" and entry["n"] == 12


def test_an_answer_that_is_no_option_is_counted(tmp_path):
    data = seed(tmp_path / "data", "lines")
    path = data / SEED_FILE
    path.write_text(path.read_text().replace('"answer": "C"', '"answer": "F"'))
    entry = sat("seed2plus", SEED2PLUS, data, tmp_path / "out", text(lambda request: "A"))
    assert entry["notes"] == {"whose answer is no option": 1} and entry["metrics"]["web"] == 0


def test_names_that_transcripts_cannot_hold(tmp_path):
    """Recordings of one's own may be called as one likes."""
    data = librispeech(tmp_path / "data", "lines")
    path = data / "test.jsonl"
    (data / "wavs" / "84-1-0000.wav").rename(data / "wavs" / "my clip (1).wav")
    path.write_text(path.read_text().replace("84-1-0000", "my clip (1)"))
    sat("librispeech", LIBRISPEECH, data, tmp_path / "out", text(lambda request: "no"))
    told = (tmp_path / "out/benchmarks/librispeech-released/exports/hyp.trn").read_text().splitlines()
    assert told[2] == "no (my_clip_1_)"


@pytest.mark.parametrize("file", ["run.json", "decoding.json"])
def test_a_damaged_note_of_whose_answers_these_are(file, tmp_path):
    data, model = mme(tmp_path / "data", "table", {"OCR": 2}), text(lambda request: "yes")
    sat("mme", MME, data, tmp_path / "out", model)
    (tmp_path / "out/benchmarks/mme-released" / file).write_text("{")
    with pytest.raises(UserError, match=rf"{file} is damaged .*name another --out"):
        sat("mme", MME, data, tmp_path / "out", model)
