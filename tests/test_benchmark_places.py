"""Answers kept in a bucket as they come: killed, gone on with by other processes, and read by the command."""

import json
import types

import pytest
import stores
from benchmark_toys import EARS, Scripted, always_right_but, libritts, mme, replaced, sat, tone
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.yes_no import MME
from experiments import evaluate, public
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.buckets import Bucket
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import benchmarking
from omnidiff_jax.evaluation.lines import LineWriter, read_lines
from omnidiff_jax.evaluation.places import open_place
from omnidiff_jax.evaluation.stages import Share


class Memory(MemoryFileSystem):
    """fsspec's own, with names as object stores give them."""

    cachable = False

    def find(self, path, **options):
        return {name.lstrip("/"): info for name, info in super().find(path, **options).items()}


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def home(request, monkeypatch):
    if request.param == "memory":
        there = Memory()
        there.store, there.pseudo_dirs = {}, [""]
        there.mkdir(stores.BUCKET)
        monkeypatch.setattr(Bucket, "_open", lambda self: there)
        yield f"s3://{stores.BUCKET}/exams"
        return
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with stores.s3() as variables, stores.in_environment(variables):
        yield f"s3://{stores.BUCKET}/exams"


def scores(content):
    return json.loads(content) | {"seconds": 0}


def test_a_killed_benchmark_in_a_bucket_is_gone_on_with(home, tmp_path):
    data, wrong = mme(tmp_path / "data", "table"), {("existence 0", "No"): "yes"}
    sat("mme", MME, data, tmp_path / "whole", always_right_but(wrong))

    class Killed(Exception):
        pass

    model, broken = always_right_but(wrong), always_right_but(wrong)
    broken.said = lambda request: (_ for _ in ()).throw(Killed) if "OCR" in request.text else model.said(request)
    with pytest.raises(Killed):
        sat("mme", MME, data, f"{home}/a", broken, through=("generate",), rows=2)
    place = open_place(f"{home}/a") / "benchmarks" / "mme-released"
    before = len(read_lines(place, "answers"))
    assert 0 < before < 16 and len(place.parts("answers")) >= 2  # an object for each batch that was answered
    for number in range(2):
        sat("mme", MME, data, f"{home}/a", model, share=Share(number, 2), through=("generate",), rows=16)
    assert model.asked == 16 - before
    sat("mme", MME, data, f"{home}/a", model, through=("score",))
    whole = open_place(tmp_path / "whole") / "benchmarks" / "mme-released"
    assert scores(place.read("score.json")) == scores(whole.read("score.json"))
    assert place.read("exports/mme/OCR.txt") == whole.read("exports/mme/OCR.txt") is not None


def test_two_writers_of_one_share_in_a_bucket(home):
    place = open_place(f"{home}/two")
    with LineWriter(place, "answers", "0-of-1") as one, LineWriter(place, "answers", "0-of-1") as other:
        one.add(("a", "1"), {"text": "x"})
        other.add(("a", "2"), {"text": "y"})
        one.flush()
        with pytest.raises(UserError, match=r"another process writes s3://.*000000\.jsonl"):
            other.flush()
        other._added._waiting = []
    assert list(read_lines(place, "answers")) == [("a", "1")]


def test_the_command_leaves_media_and_scorecard_in_a_bucket(home, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, "judge_for", lambda words, reads: EARS)
    monkeypatch.setitem(LIBRITTS.protocols, "plain", replaced(LIBRITTS.protocols["lmms_eval"], normaliser="plain"))
    model = Scripted(lambda request: Response(audio=tone(5.0)))
    model.decoded_by = lambda settings: model
    monkeypatch.setattr(public, "load", lambda what, **options: types.SimpleNamespace(generator=model))
    words = [f"--data={libritts(tmp_path, 'openslr')}", f"--out={home}/b", "--exam=libritts", "--protocol=plain"]
    evaluate.COMMAND.call(evaluate.run, ["--model=nano", *words])
    there = Bucket(f"{home}/b").list()
    assert {"scorecard.json", "benchmarks.md", "report.html", "benchmarks/libritts-plain/score.json"} <= there.keys()
    assert sum(name.endswith(".wav") for name in there) == 3
    entry = json.loads(Bucket(f"{home}/b").read("scorecard.json"))["exams"]["libritts"]
    assert entry["n"] == 3 and entry["metrics"]["word error rate"] == pytest.approx(500 / 7)  # "He hoped" each time
    with pytest.raises(UserError, match="lies in a bucket, where a local path"):
        evaluate.COMMAND.call(evaluate.run, ["--exam=mme", "--data=s3://x/y", "--dry_run"])
