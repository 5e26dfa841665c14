"""Readers of corpora: each on a miniature of its true layout, the index of tars, what is said of what is wrong."""

import io
import json
import pickle
import tarfile

import corpora
import numpy as np
import pytest
import soundfile
from corpora import opened, with_peak
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.readers.corpora import CORPORA
from data_pipelines.readers.index import FAULT
from data_pipelines.readers.layouts import folder, tars
from data_pipelines.readers.reader import CORPUS_READERS
from experiments import data as data_command
from omnidiff_jax.cli import guard
from omnidiff_jax.codecs.encode import load_media
from omnidiff_jax.codecs.judgment import check_trainable
from omnidiff_jax.data.readers import SourceConfig, check_learned, raw_records
from omnidiff_jax.data.sources import JsonlRecords
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio, write_wav
from omnidiff_jax.records import AUDIO_TAG, Medium, RejectedRecord, Waveform
from omnidiff_jax.tasks.registry import TASKS

pytestmark = pytest.mark.usefixtures("own_cache")


def reasons(records):
    """Reason -> count of what is rejected, and the records that are not."""
    found, usable = {}, []
    for index in range(len(records)):
        try:
            record = load_media(records[index])
            check_trainable(record)
            usable.append(record)
        except RejectedRecord as error:
            found[error.reason] = found.get(error.reason, 0) + 1
    return found, usable


@pytest.mark.parametrize("name", corpora.EXPECTED)
def test_a_corpus_is_read_as_it_lies_on_disk(name, tmp_path):
    corpora.make(name, tmp_path)
    config = SourceConfig(name, path=str(tmp_path))
    records, identity = raw_records(config, CORPUS_READERS[name])
    rejected, usable = reasons(records)
    task, *texts = corpora.EXPECTED[name]
    assert not rejected and len(usable) == 2 and identity
    assert len({record.sample_id for record in usable}) == 2
    for record, text in zip(usable, texts, strict=True):
        assert record.task == (task if record.images or name != "llava_onevision" else "text_qa")
        told = record.messages[-1 if TASKS[record.task].answer.startswith("text") else -2].content
        assert told.removesuffix(f"\n{AUDIO_TAG}").endswith(text)
    again = pickle.loads(pickle.dumps(records))
    assert again[1] == records[1] and again.fingerprint == records.fingerprint


def test_fields_of_a_record_come_from_where_they_stand(tmp_path):
    corpora.make("gigaspeech", tmp_path)
    record = opened("gigaspeech", tmp_path, split="XL")[1]
    (segment,) = record.audios
    assert (segment.path, segment.start, segment.end) == (str(tmp_path / "audio/podcast/P0.opus"), 1.25, 2.0)
    assert record.meta["id"] == "P0_S1"
    whole = load_media(record).audios[0]
    assert whole.seconds == pytest.approx(0.75, abs=1e-3)
    assert len(opened("gigaspeech", tmp_path, split="test")) == 1


def test_rules_of_text_are_switches(tmp_path):
    corpora.make("librispeech", tmp_path)
    plain = opened("librispeech", tmp_path, rules={"lower": False})
    assert plain[0].messages[-1].content == "NORTHANGER ABBEY"
    assert plain.fingerprint != opened("librispeech", tmp_path).fingerprint
    with pytest.raises(UserError, match=r"rules\.lowr.*lower"):
        opened("librispeech", tmp_path, rules={"lowr": False})


@pytest.mark.parametrize("name", [name for name in corpora.EXPECTED if name != "audioqa"])
def test_another_corpus_is_named(name, tmp_path):
    corpora.make(name, tmp_path)
    wrong = "coco" if name != "coco" else "librispeech"
    with pytest.raises(UserError, match=rf"is not {wrong} .*set reader=\w+") as refused:
        opened(wrong, tmp_path)
    # A mirror of JourneyDB and LAION are tars of jpg and txt alike.
    assert f"reader={name}" in str(refused.value) or (name == "laion" and "reader=journeydb" in str(refused.value))


def test_a_missing_column_names_the_nearest(tmp_path):
    corpora.parquet(tmp_path / "a.parquet", [{"sound": corpora.cell(corpora.sound_bytes(300)), "transcripts": "hm"}])
    with pytest.raises(UserError, match="no column 'transcript'; did you mean 'transcripts'"):
        opened("parquet", tmp_path, columns={"text": "transcript", "audio": "sound"})
    with pytest.raises(UserError, match="set columns.text.*sound, transcripts"):
        opened("parquet", tmp_path)
    (record,) = reasons(opened("parquet", tmp_path, columns={"text": "transcripts", "audio": "sound"}))[1]
    assert record.task == "asr" and record.audios[0].seconds == 0.5
    with pytest.raises(UserError, match="does not exist"):
        opened("parquet", tmp_path / "none")


def test_test_splits_are_no_training_data_unless_asked():
    for name in ("librispeech", "coco"):
        config = SourceConfig(name, path="x", split="test-clean")
        with pytest.raises(UserError, match=r"mine\.split = 'test-clean' of x is test data of .*test_data=True"):
            check_learned("mine", config, CORPUS_READERS[name])
        for hidden in ({"path": "corpus/test-clean"}, {"split": ""}, {"split": "{TEST}"}):
            with pytest.raises(UserError, match="is test data of"):
                check_learned("mine", SourceConfig(name, **({"path": "x"} | hidden)), CORPUS_READERS[name])
        check_learned("mine", SourceConfig(name, path="x/valuable"), CORPUS_READERS[name])
        check_learned("mine", SourceConfig(name, path="x", split="test-clean", test_data=True), CORPUS_READERS[name])
        check_learned("mine", SourceConfig(name, path="x", split="train-clean-100"), CORPUS_READERS[name])
    assert all(corpus.licence and corpus.languages for corpus in CORPORA.values())


KEYS = st.sampled_from(["a", "a/b", "a/22.0/1", "b.c/x", "z"])
ENDINGS = st.sampled_from(["jpg", "png", "txt", "1.png", "json", "JPG"])


@given(st.lists(st.tuples(KEYS, ENDINGS), max_size=12))
def test_the_index_of_a_tar_holds_every_member_once_whatever_the_order(tmp_path_factory, members):
    """As a plain walk: bytes of each member, by (name up to the first dot, ending); a name given twice is a fault."""
    root = tmp_path_factory.mktemp("tar")
    content = [(f"{key}.{ending}", f'{{"n": {n}}}') for n, (key, ending) in enumerate(members)]
    file = corpora.tar(root / "a.tar", content)
    expected = {}
    for name, text in content:
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        expected.setdefault(f"{folder}/{stem}" if folder else stem, []).append((ending.lower(), text))
    rows = tars(root)
    assert len(rows) == len(expected)
    data = file.read_bytes()
    for index, (key, held) in enumerate(expected.items()):
        row = rows[index]
        if len(dict(held)) < len(held):
            assert row[FAULT] == "two members of one name"
            continue
        assert row.pop("__key__") == key and row.keys() == dict(held).keys()
        for ending, text in held:
            cell = row[ending]
            if isinstance(cell, dict) and "offset" in cell:
                assert data[cell["offset"] : cell["offset"] + cell["size"]].decode() == text
            else:
                assert cell == (text if ending == "txt" else {"n": int(text[6:-1])})


def test_a_tar_cut_short_keeps_what_is_whole(tmp_path):
    corpora.make("laion", tmp_path)
    file = tmp_path / "00000.tar"
    with_third = file.read_bytes()
    third = with_third.index(b"000000001.jpg")
    file.write_bytes(with_third[: third + 540])
    rejected, usable = reasons(opened("laion", tmp_path))
    assert len(usable) == 1 and rejected == {"archive is cut short": 2}
    file.rename(tmp_path / "00000.tar.gz")
    with pytest.raises(UserError, match="unpack it"):
        opened("laion", tmp_path)


def test_damaged_parquet_is_counted_and_the_rest_read(tmp_path):
    corpora.make("globe", tmp_path)
    corpora.parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet", [{"audio": None, "speaker_id": "S", "transcript": ""}] * 2
    )
    (tmp_path / "data" / "train-00002-of-00003.parquet").write_bytes(b"<html>")
    rejected, usable = reasons(opened("globe", tmp_path))
    assert len(usable) == 2 and rejected == {"no audio": 2, "damaged parquet": 1}


def test_rows_that_lead_out_of_their_root_are_refused(tmp_path):
    corpora.sound(tmp_path / "out.wav", 300)
    corpora.lines(
        tmp_path / "set" / "a.jsonl", [{"wav": name, "said": "hm"} for name in ("../out.wav", "/etc/passwd", "")]
    )
    records = opened("json_lines", tmp_path / "set", columns={"audio": "wav", "text": "said"})
    assert reasons(records)[0] == {"path leads out of the media folder": 2, "no audio": 1}


def test_a_folder_of_media_with_texts_beside_them(tmp_path):
    corpora.sound(tmp_path / "a.b.wav", 300)
    (tmp_path / "a.b.txt").write_text("  heard  this\n")
    corpora.write_png(tmp_path / "sub" / "c.png", corpora.picture(9))
    (tmp_path / "sub" / "c.txt").write_text("seen")
    corpora.write_png(tmp_path / "d.png", corpora.picture(9))
    rejected, usable = reasons(opened("folder", tmp_path))
    assert rejected == {"no text beside the medium": 1}
    assert {(record.task, record.messages[-1].content) for record in usable} == {
        ("asr", "heard this"),
        ("captioning", "seen"),
    }
    drawn = opened("folder", tmp_path / "sub", task="t2i")
    assert drawn[0].messages[-2].content.endswith("seen") and len(drawn[0].images) == 1


def test_an_index_is_made_again_when_its_files_change(tmp_path):
    corpora.make("librispeech", tmp_path)
    first = opened("librispeech", tmp_path)
    (file,) = tmp_path.rglob("*.trans.txt")
    file.write_text("19-198-0000 OTHER\n")
    second = opened("librispeech", tmp_path)
    assert len(first) == 2 and len(second) == 1 and first.fingerprint != second.fingerprint


def test_segments_are_the_stretch_of_the_whole(tmp_path):
    wave = np.concatenate([corpora.tone(hertz) for hertz in (300, 500, 700)])
    write_wav(tmp_path / "a.wav", Waveform(wave, corpora.RATE))
    whole = read_audio(tmp_path / "a.wav").samples
    for start, end in ((0.0, 0.5), (0.5, 1.0), (1.0, None), (0.25, 1.52)):
        got = read_audio(Medium("a", str(tmp_path / "a.wav"), start=start, end=end)).samples
        np.testing.assert_array_equal(
            got, whole[round(start * corpora.RATE) : None if end is None else round(end * corpora.RATE)]
        )
    for start, end in ((1.0, 1.0), (2.0, 3.0), (0.0, 9.0)):
        with pytest.raises(UserError, match="1.50 s long"):
            read_audio(Medium("a", str(tmp_path / "a.wav"), start=start, end=end))


def test_another_form_given_as_json_lines_is_named(tmp_path):
    corpora.make("laion", tmp_path)
    corpora.make("globe", tmp_path)
    for pattern, reader in (("*.tar", "tar"), ("*.parquet", "parquet")):
        with pytest.raises(UserError, match=f"not JSON lines; read it with reader={reader}$"):
            JsonlRecords(next(tmp_path.rglob(pattern)))


def test_absolute_paths_are_taken_where_they_lie_under_the_root(tmp_path):
    corpora.write_png(tmp_path / "in" / "a.png", corpora.picture(3))
    turns = [{"role": "user", "content": "<|image|>what?"}, {"role": "assistant", "content": "red"}]
    rows = [
        {"messages": turns, "images": [str(tmp_path / name)]} for name in ("in/a.png", "in/../b.png", "inner/a.png")
    ]
    manifest = corpora.lines(tmp_path / "a.jsonl", rows)
    assert len(reasons(JsonlRecords(manifest, tmp_path / "in"))[1]) == 1
    assert reasons(JsonlRecords(manifest, "/"))[0] == {"missing image": 2}


def test_mp3_without_an_index_is_read_to_its_end(tmp_path):
    """What LAME writes with -t: a decoder estimates the length from the first frames, here silent ones."""
    rng = np.random.default_rng(0)
    for rate in (16000, 44100):
        wave = np.concatenate([np.zeros(rate * 4), rng.normal(0, 0.1, rate * 4)]).astype(np.float32)
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.4)
        content = buffer.getvalue()
        first = content.index(b"\xff", 4 + content.index(b"Xing"))
        while content[first + 1] & 0xE6 != 0xE2:
            first = content.index(b"\xff", first + 1)
        bare = content[first:]
        assert abs(soundfile.info(io.BytesIO(bare)).duration - 8) > 1
        assert read_audio(Medium("a.mp3", content=bare)).seconds == pytest.approx(8, abs=0.1)
        assert read_audio(Medium("a.mp3", content=content)).seconds == pytest.approx(8, abs=0.01)
        # A stretch of it is read without the rest, from a file too.
        (tmp_path / "a.mp3").write_bytes(bare)
        whole = read_audio(Medium("a.mp3", content=bare)).samples
        for start in (0.5, 6.0):
            part = read_audio(Medium("a.mp3", str(tmp_path / "a.mp3"), start=start, end=start + 1)).samples
            np.testing.assert_allclose(part, whole[round(start * rate) :][:rate], atol=1e-4)
        # A header that announces two frames more than there are.
        at = content.index(b"Xing") + 8
        frames = int.from_bytes(content[at : at + 4], "big") + 2
        more = content[:at] + frames.to_bytes(4, "big") + content[at + 4 :]
        assert read_audio(Medium("a.mp3", content=more)).seconds == pytest.approx(8, abs=0.1)
    with pytest.raises(UserError, match="empty"):
        read_audio(Medium("a.mp3", content=b""))


def test_a_stretch_of_a_long_mp3_costs_its_own_memory(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, corpora.tone(440, 1.0, 48000), 48000, format="MP3", bitrate_mode="CONSTANT")
    bare = buffer.getvalue()
    first = bare.index(b"\xff", 4 + max(bare.find(b"Xing"), bare.find(b"Info")))
    bare = bare[first:]
    (tmp_path / "a.mp3").write_bytes(bare * (6 * 2**20 // len(bare)))
    wave, most = with_peak(lambda: read_audio(Medium("a.mp3", str(tmp_path / "a.mp3"), start=2.0, end=3.0)))
    assert wave.seconds == 1.0 and most < 2**20


def test_names_that_say_a_split_leave_the_rest_of_a_folder(tmp_path):
    """A name is a split's where each says one; else only folders are, and what is in none of them is of all."""
    for name in ("train_station", "test_tube", "dog", "test/cat"):
        corpora.write_png(tmp_path / "some" / f"{name}.png", corpora.picture(9))
        (tmp_path / "some" / f"{name}.txt").write_text(name)
    told = {record.messages[-1].content for record in reasons(opened("folder", tmp_path / "some"))[1]}
    assert told == {"train_station", "test_tube", "dog"}
    for name in ("train_1", "test_1"):
        corpora.write_png(tmp_path / "all" / f"{name}.png", corpora.picture(9))
        (tmp_path / "all" / f"{name}.txt").write_text(name)
    for split in ("train", "test"):
        (record,) = reasons(opened("folder", tmp_path / "all", split=split))[1]
        assert record.messages[-1].content == f"{split}_1"


@pytest.mark.parametrize("name", ["/etc/passwd.mp3", "../../../out.mp3", "a\0.mp3"])
def test_names_in_tables_and_annotations_stay_in_their_root(name, tmp_path):
    corpora.make("common_voice", tmp_path)
    table = tmp_path / "cv-corpus-21" / "en" / "train.tsv"
    table.write_text(table.read_text().replace("clip_0.mp3", name.replace("\0", "")))
    rejected, usable = reasons(opened("common_voice", tmp_path))
    assert len(usable) == 1 and set(rejected) <= {"path leads out of the media folder", "missing audio"}
    corpora.make("coco", tmp_path / "coco")
    annotations = tmp_path / "coco" / "annotations" / "captions_train2017.json"
    content = json.loads(annotations.read_text())
    content["images"][0] |= {"file_name": name, "id": [1]}
    content["annotations"][0]["image_id"] = [1]
    annotations.write_text(json.dumps(content))
    rejected, usable = reasons(opened("coco", tmp_path / "coco"))
    assert len(usable) == 1 and rejected == {"path leads out of the media folder": 1}


@pytest.mark.parametrize(
    "stretch", [{"offset": "0", "size": 4}, {"offset": -1, "size": 4}, {"offset": 0}, {"offset": 10**30, "size": 1}]
)
def test_bytes_that_a_line_names_are_of_its_file(stretch, tmp_path):
    corpora.sound(tmp_path / "a.wav", 300)
    whole = {"path": "a.wav", "offset": 0, "size": (tmp_path / "a.wav").stat().st_size}
    corpora.lines(
        tmp_path / "a.jsonl", [{"wav": {"path": "a.wav", **stretch}, "said": "hm"}, {"wav": whole, "said": "hm"}]
    )
    rejected, usable = reasons(opened("json_lines", tmp_path, columns={"audio": "wav", "text": "said"}))
    assert rejected == {"no medium": 1} and len(usable) == 1


def test_a_line_of_what_unicode_counts_as_blank_is_damaged_not_empty(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\x1c\n \t\r\n{"wav": "missing.wav", "said": "hm"}\n')
    assert len(opened("json_lines", tmp_path, columns={"audio": "wav", "text": "said"})) == 2


def test_turns_that_nothing_answers_are_no_part_of_a_sample(tmp_path):
    def turns(*contents):
        return [
            {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, contents, strict=False)
        ]

    rows = [{"messages": turns("a", "b", "c", "d")}, {"messages": turns("a", "", "c", "d")}]
    rows += [{"messages": turns("a", "b", "c")}, {"messages": [*turns("a", "b", "c"), *turns("e")]}]
    corpora.parquet(tmp_path / "train.parquet", [row | {"id": str(n)} for n, row in enumerate(rows)])
    rejected, usable = reasons(opened("tulu3", tmp_path))
    assert rejected == {"blank assistant message": 1}
    assert [[message.content for message in record.messages] for record in usable] == [
        ["a", "b", "c", "d"],
        ["a", "b"],
        ["a", "b"],
    ]
    # A manifest's own lines are taken as they are written, or not at all.
    dangling = reasons(JsonlRecords(corpora.lines(tmp_path / "a.jsonl", rows)))[0]
    assert dangling == {"blank assistant message": 1, "last message is not the assistant's": 2}


def test_a_source_is_looked_at_with_any_reader(tmp_path, capsys):
    corpora.make("common_voice", tmp_path)
    clips = tmp_path / "cv-corpus-21" / "en" / "clips"
    (clips / "clip_0.mp3").write_bytes(b"")
    command = data_command.COMMAND
    words = ["check", str(tmp_path), "--reader=common_voice", f"--report={tmp_path / 'report.html'}", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["accepted"], report["rejected"]) == (1, {"unusable audio": 1})
    assert report["languages"] == {"en": 1} and report["tasks"] == {"asr": 1}
    assert report["amounts_to"]["measured"] == 1 and report["amounts_to"]["tokens"] > 10
    page = (tmp_path / "report.html").read_text()
    assert "data:audio/wav;base64," in page and "Seconds of audio" in page and "empty (0 bytes)" in page
    assert "http" not in page
    (clips / "clip_1.mp3").write_bytes(b"no sound")
    assert guard(command.program, lambda: command.call(data_command.run, words[:3])) == 2
    assert "nothing in" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["header", "boundary", "size"])
def test_a_damaged_tar_does_not_end_in_silence(tmp_path, harm):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"word"))
    content = bytearray(buffer.getvalue())
    third = 2 * 2 * tarfile.BLOCKSIZE
    if harm == "header":
        content[third : third + tarfile.BLOCKSIZE] = b"\xff" * tarfile.BLOCKSIZE
    elif harm == "boundary":
        del content[third:]
    else:
        content[third + 124 : third + 136] = (-512).to_bytes(12, "big", signed=True)
        content[third + 148 : third + 156] = b" " * 8
        content[third + 148 : third + 156] = b"%06o\0 " % sum(content[third : third + tarfile.BLOCKSIZE])
    (tmp_path / "train-0.tar").write_bytes(content)
    rows = list(tars(tmp_path, "train"))
    assert [row.get(FAULT) for row in rows] == [None, None, "archive is cut short"]


def test_an_edited_caption_is_read_anew(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.png")
    caption = tmp_path / "dog.txt"
    for text in ("a dog", "a black dog", "a dog that sleeps"):
        caption.write_text(text)
        assert [row["text"] for row in folder(tmp_path, "")] == [text]
