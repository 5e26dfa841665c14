"""Sets built shard by shard: the same bytes whoever builds, however often he is killed; what is there is not redone."""

import collections
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mixed_data import write_mixed
from test_data_encode import RECORDS, FakeTokenizers, picture, tone, turn

from data_pipelines.beam import Beam
from omnidiff_jax.codecs import encode
from omnidiff_jax.codecs.heard import Waveforms, samples, sound
from omnidiff_jax.codecs.tokenizers import FIXED, TokenizersConfig, open_tokenizers
from omnidiff_jax.data import building
from omnidiff_jax.data.building import Host, begun_sets, build_sets, finish_sets
from omnidiff_jax.data.config import EncodingConfig
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.data.storage import MANIFEST, EncodedSet
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Record, RejectedRecord, Waveform

SHARD = EncodingConfig(shard=7)
NANO, ALONE = TokenizersConfig(), Host()


class Toy:
    """Records of every kind, some of which cannot be used."""

    def __init__(self, count, first="a"):
        self.count, self.first = count, first

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index % 10 == 3:
            raise RejectedRecord("torn", f"record {index} is torn")
        if index % 10 == 8:
            return Record(index, "vqa", turn("<|image|>", "x"), images=("nowhere.png",))
        record = RECORDS[index % len(RECORDS)]
        words = turn(record.messages[0].content, f"{record.messages[1].content} {self.first}{index}")
        answered = "<|image|>" in record.messages[1].content
        return dataclasses.replace(record, sample_id=index, messages=record.messages if answered else words)


@pytest.fixture
def sources(monkeypatch):
    """Builds sets of toys: `build(folder, count, runner, …)`; `build.calls` counts the shards that were encoded."""
    calls = []
    opened = dataclasses.make_dataclass("Opened", ["codecs", "fingerprint"])
    tokenizers = opened(FakeTokenizers().codecs(), "first")
    monkeypatch.setattr(building, "_tokenizers", lambda config: tokenizers)
    whole = building.build_shard

    def counted(job):
        calls.append((job.name, job.number))
        return whole(job)

    monkeypatch.setattr(building, "build_shard", counted)

    def build(folder, count=40, runner=ALONE, encoding=SHARD, first="a", fingerprint="first", names=("one", "two")):
        tokenizers.fingerprint = fingerprint
        held = {name: Toy(count, first) for name in names}
        readers = {
            "toy": Reader("toys", (), lambda config: held[config.path], lambda config, toy: f"{toy.first}{toy.count}")
        }
        given = {name: SourceConfig("toy", path=name) for name in names}
        return build_sets(given, readers, NANO, folder, runner, encoding)

    build.calls = calls
    return build


def tree(folder):
    """Every file's bytes, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_one_host_or_three_in_any_order_write_the_same_bytes(tmp_path, sources):
    alone = sources(tmp_path / "alone")
    assert alone["one"].examples == 32 and alone["one"].rejected == {"torn": 4, "missing image": 4}
    assert [number for number, _ in alone["one"].first_rejects["torn"]] == [3, 13, 23]
    assert alone["one"].seconds["heard"] > 0 < alone["one"].seconds["spoken"] and alone["one"].tasks["spoken_vqa"] == 8
    assert sources(tmp_path / "three", runner=Host(2, 3)) == {}
    with pytest.raises(
        UserError, match=r"three/one is not whole: shards .* of 6 are missing .*start --shard=0/3, --sh"
    ):
        finish_sets(begun_sets(tmp_path / "three"))
    assert sources(tmp_path / "three", runner=Host(0, 3)) == {}
    assert sources(tmp_path / "three", runner=Host(1, 3)) == alone  # whoever ends last
    assert tree(tmp_path / "three") == tree(tmp_path / "alone")
    assert len(sources.calls) == 24 and len(set(sources.calls)) == 12
    before = len(sources.calls)
    assert finish_sets(begun_sets(tmp_path / "alone", ["two"])) == {"two": alone["two"]}
    assert sources(tmp_path / "alone") == alone and len(sources.calls) == before  # nothing is redone

    read = EncodedSet(tmp_path / "alone" / "one", "first")
    wanted = list(encode.encode((Toy(40)[i] for i in range(40) if i % 10 != 3), FakeTokenizers().codecs()))
    wanted = [example for example in wanted if not isinstance(example, RejectedRecord)]
    assert len(read) == len(wanted) == 32
    for index in (31, 0, 6, 5, 12):
        assert read[index].sample_id == wanted[index].sample_id
        np.testing.assert_array_equal(read[index].frames, wanted[index].frames)


def test_a_kill_loses_the_shard_under_way(tmp_path, sources, monkeypatch):
    sources(tmp_path / "whole")
    add = building.ShardWriter.add

    def dies(after):
        left = [after]

        def one(self, example):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            add(self, example)

        monkeypatch.setattr(building.ShardWriter, "add", one)

    for after in (3, 20, 30):
        dies(after)
        with pytest.raises(KeyboardInterrupt):
            sources(tmp_path / "killed")
        assert not list((tmp_path / "killed").rglob(MANIFEST))
    left = tmp_path / "killed" / "two" / ".shard-00005.left"  # as SIGKILL leaves them
    left.mkdir()
    (left / "examples-00005.array_record").write_bytes(b"half")
    monkeypatch.setattr(building.ShardWriter, "add", add)
    sources(tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert max(collections.Counter(sources.calls[12:]).values()) <= 2 + 1


def test_a_grown_source_adds_shards_only(tmp_path, sources):
    first = sources(tmp_path, 40)["one"]
    before, stamps = tree(tmp_path / "one"), {f: f.stat().st_mtime_ns for f in (tmp_path / "one").iterdir()}
    sources.calls.clear()
    grown = sources(tmp_path, 55)["one"]
    assert sorted(number for name, number in sources.calls if name == "one") == [6, 7, 8]
    after = tree(tmp_path / "one")
    for name, content in before.items():
        if name not in ("plan.json", MANIFEST):
            assert (
                after[name] == content
                and (tmp_path / "one" / name).stat().st_mtime_ns == stamps[tmp_path / "one" / name]
            )
    assert grown.examples == 44 and list(grown.shards.items())[:6] == list(first.shards.items())
    assert [EncodedSet(tmp_path / "one", "first")[i].sample_id for i in (0, 31, 32, 43)] == [0, 39, 40, 54]
    with pytest.raises(
        UserError, match=r"one was begun with 55 records, its source has 40 now: it shrank; put them back"
    ):
        sources(tmp_path, 40)
    with pytest.raises(UserError, match=r"one: among records 1 to 7 some are others than when they were encoded"):
        sources(tmp_path, 60, first="b")
    with pytest.raises(UserError, match=r"one was begun with other records: their number is the same"):
        sources(tmp_path, 55, first="b")
    assert tree(tmp_path / "one") == after


def test_what_does_not_go_together_is_refused_in_a_line(tmp_path, sources):
    assert sources(tmp_path, runner=Host(0, 2)) == {}
    with pytest.raises(UserError, match=r"one was begun with other tokenizers \(first, these are second\)"):
        sources(tmp_path, runner=Host(1, 2), fingerprint="second")
    with pytest.raises(UserError, match=r"one was begun by 2 hosts, this is one of 3: give --shard=0/2 to --shard=1/2"):
        sources(tmp_path, runner=Host(1, 3))
    with pytest.raises(UserError, match=r"one was begun with heard = 'features', now it is 'waveforms'"):
        sources(tmp_path, runner=Host(1, 2), encoding=EncodingConfig(Waveforms(), 7))
    (shards,) = begun_sets(tmp_path, ["one"])
    with shards.held(1, 2):
        with pytest.raises(
            UserError, match=r"one, shard 1/2, is in use: process \d+ on .* builds there since .*--shard"
        ):
            sources(tmp_path, runner=Host(1, 2))
        with pytest.raises(UserError, match=r"one, shard 1/2, is in use"):  # one host alone would take over
            sources(tmp_path)
    with pytest.raises(UserError, match="nothing called three was begun"):
        begun_sets(tmp_path, ["three"])
    whole = sources(tmp_path)  # the first host is gone: another way goes on where it ended
    assert whole["one"].examples == 32 and len(set(sources.calls)) == len(sources.calls) == 12
    (tmp_path / "one" / "examples-00001.array_record").write_bytes(b"cut")
    with pytest.raises(
        UserError, match=r"examples-00001.array_record has 3 bytes, \d+ were written; remove shard-00001"
    ):
        sources(tmp_path)


def test_nothing_is_left_of_a_set_of_rejects(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(Toy, "__getitem__", lambda self, index: Record(index, "t2i", turn("draw", "a cat")))
    with pytest.raises(UserError, match="none of 40 records can be used: not a sample of its task .40.; "):
        sources(tmp_path, names=("one",))
    assert not list(tmp_path.iterdir())


def test_sounds_are_kept_where_asked_and_heard_alike(tmp_path, sources):
    sources(tmp_path / "sounds", encoding=EncodingConfig(Waveforms(), 7))
    features = FakeTokenizers().features
    kept = EncodedSet(tmp_path / "sounds" / "one", "first", features)
    assert kept.manifest.encoding["heard"] == "waveforms"
    spoken = next(i for i in range(len(kept)) if kept[i].task == "spoken_vqa")
    assert kept[spoken].frames.dtype == np.float16
    np.testing.assert_array_equal(kept[spoken].frames, features(sound(samples(tone(0.3)))).astype(np.float16))
    with pytest.raises(UserError, match="keeps sounds"):
        EncodedSet(tmp_path / "sounds" / "one", "first")[spoken]
    rough = Waveform(np.random.default_rng(0).uniform(-1, 1, 4410).astype(np.float32), 22050)
    np.testing.assert_array_equal(samples(sound(samples(rough))), samples(rough))


def test_media_are_encoded_together_as_far_as_memory_allows(monkeypatch):
    fakes, records = FakeTokenizers(), [RECORDS[1], RECORDS[3], RECORDS[2]] * 20
    together = list(encode.encode(records, fakes.codecs()))
    calls = len(fakes.image_calls)
    monkeypatch.setattr(encode, "_TOGETHER", 20_000)
    apart = list(encode.encode(records, fakes.codecs()))
    assert calls == 2 and len(fakes.image_calls) > 10
    assert [e.tokens.tolist() for e in apart] == [e.tokens.tolist() for e in together]
    monkeypatch.setattr(encode, "_MOST_BYTES", 30_000)
    many = Record(1, "asr", turn("<|audio|>", "x"), audios=(tone(0.5),))
    assert [result.reason for result in encode.encode([many], fakes.codecs())] == ["too many media"]
    # A picture is as large as its codes need before the next one is read.
    wide = Record(2, "vqa", turn(9 * "<|image|>", "x"), images=9 * (picture(1, 60, 60),))
    assert encode.encode_one(wide, fakes.codecs()).task == "vqa"
    long = Record(3, "text_qa", turn("x" * 2**20, "y"))
    assert [result.reason for result in encode.encode([long], fakes.codecs())] == ["too much text"]


def test_codes_do_not_depend_on_the_company():
    codecs = open_tokenizers(NANO, FIXED).codecs
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (21, 16, 16, 3), np.uint8)
    waves = [Waveform(rng.uniform(-0.5, 0.5, 6000 + 900 * k).astype(np.float32), 16000) for k in range(11)]
    together, spoken = codecs.images(pictures), codecs.speech(waves)
    fresh = open_tokenizers(NANO, FIXED).codecs  # remembers nothing
    for k in (0, 7, 20):
        np.testing.assert_array_equal(codecs.images(pictures[k : k + 1])[0], together[k])
    for k in (10, 0, 5):
        np.testing.assert_array_equal(fresh.speech([waves[k]])[0], spoken[k])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers=2", "--shard=0/2"], "--workers and --shard are two ways to build"),
        (["--shard=2/2"], "--shard=2/2 is not I/N"),
        (["--source=asrr"], "unknown source 'asrr'; did you mean 'asr'"),
    ],
)
def test_flags_that_cannot_be_are_refused(tmp_path, words, said):
    from experiments import data as command  # imports every reader

    with pytest.raises(UserError, match=said):
        command.COMMAND.call(command.run, ["build", str(tmp_path / "out"), *words])
    assert not list(tmp_path.iterdir())


def test_beam_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(
        UserError, match=r"--beam_runner needs the extra 'beam' .*pip install 'omnidiff_jax\[beam\]'"
    ) as said:
        Beam("DirectRunner")
    assert "\n" not in str(said.value)


# ---- ten thousand samples, for real ----------------------------------------------------------------------------------


def command_line(out, config, *words):
    return [sys.executable, "-m", "omnidiff_jax.cli", "data", "build", str(out), f"--config={config}", *words]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_samples_are_the_same_whoever_builds(tmp_path, omnidiff):
    config = write_mixed(tmp_path, 10_000, 500)
    ways = {"two": [["--workers=2"]], "hosts": [["--shard=1/2"], ["--shard=0/2"]], "alone": [["--shard=0/1"]]}
    if importlib.util.find_spec("apache_beam"):
        ways["beam"] = [["--beam_runner=DirectRunner"]]
    done = omnidiff("data", "build", tmp_path / "one", f"--config={config}", "--workers=1", timeout=3000)
    assert done.returncode == 0, done.stderr
    whole = tree(tmp_path / "one")
    for way, runs in ways.items():
        for words in runs:
            done = omnidiff("data", "build", tmp_path / way, f"--config={config}", *words, timeout=3000)
            assert done.returncode == 0, done.stderr
        assert tree(tmp_path / way) == whole, way

    rng = np.random.default_rng(3)
    for _ in range(3):
        run = subprocess.Popen(command_line(tmp_path / "killed", config, "--workers=2"), start_new_session=True)
        begun = time.monotonic()
        before = len(list((tmp_path / "killed").glob("mix/shard-*.json")))
        while len(list((tmp_path / "killed").glob("mix/shard-*.json"))) < before + 2 and time.monotonic() < begun + 600:
            time.sleep(0.1)
        time.sleep(float(rng.uniform(0, 3)))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "mix").glob("shard-*.json")}
    done = omnidiff("data", "build", tmp_path / "killed", f"--config={config}", "--workers=2", timeout=3000)
    assert done.returncode == 0, done.stderr
    assert len(stamps) >= 6 and all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    assert tree(tmp_path / "killed") == whole


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs the extra 'beam'")
def test_a_beam_pipeline_writes_the_same_bytes(tmp_path, sources):
    alone = sources(tmp_path / "alone")
    assert sources(tmp_path / "beam", runner=Beam("DirectRunner")) == alone
    assert tree(tmp_path / "beam") == tree(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_data(tmp_path):
    peaks = []
    measured = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage"
    measured += "(resource.RUSAGE_CHILDREN).ru_maxrss)"
    for count in (1000, 10_000):
        (tmp_path / str(count)).mkdir()
        words = command_line(tmp_path / f"out{count}", write_mixed(tmp_path / str(count), count, 500), "--shard=0/1")
        told = subprocess.run([sys.executable, "-c", measured, *words], capture_output=True, text=True, check=True)
        peaks.append(int(told.stdout.split()[-1]) / 1024)
    print(f"peak MiB: {peaks}")
    assert peaks[1] < 1.1 * peaks[0], peaks
