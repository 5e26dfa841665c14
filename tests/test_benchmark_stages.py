"""Benchmarks stopped and gone on with, data that is not whole, judges that do not fit, the clock and the command."""

import json

import pytest
from benchmark_toys import EARS, Scripted, always_right_but, librispeech, libritts, mme, pope, replaced, sat, text, tone
from clip_toys import write_folder

from data_pipelines.benchmarks import latency
from data_pipelines.benchmarks.librispeech import LIBRISPEECH
from data_pipelines.benchmarks.libritts import LIBRITTS
from data_pipelines.benchmarks.yes_no import MME, POPE
from experiments import evaluate as evaluate_command
from experiments.public import data_of, protocol_of, share_of
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import benchmarking
from omnidiff_jax.evaluation.benchmark import census
from omnidiff_jax.evaluation.benchmarking import Sitting, check, sit
from omnidiff_jax.evaluation.judges import named
from omnidiff_jax.evaluation.stages import Share
from omnidiff_jax.evaluation.standing import markdown


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


def test_scoring_opens_no_model(tmp_path):
    data = mme(tmp_path / "data", "table")
    first = sat("mme", MME, data, tmp_path / "out", text(lambda request: "Yes"))
    (tmp_path / "out" / "benchmarks" / "mme-released" / "score.json").unlink()

    def opened(settings):
        raise AssertionError("a model was opened")

    again = sit("mme", MME, str(data), tmp_path / "out", Sitting("scripted", through=("judge", "score")), opened)
    assert again == first


def test_judging_is_shared_out(tmp_path, monkeypatch):
    """Each process hears its own answers and references, and goes on where it was; the score is that of one."""
    heard = []

    class Ears:
        name = EARS.name

        def hear(self, speech):
            heard.append(speech)
            return EARS.hear(speech)

    monkeypatch.setattr(benchmarking, "judge_for", lambda words, reads: Ears())
    monkeypatch.setitem(LIBRITTS.protocols, "plain", replaced(LIBRITTS.protocols["lmms_eval"], normaliser="plain"))
    data, model = libritts(tmp_path / "data", "openslr"), Scripted(lambda request: Response(audio=tone(5.0)))
    whole = sat("libritts", LIBRITTS, data, tmp_path / "whole", model, protocol="plain")
    assert len(heard) == 6
    sat("libritts", LIBRITTS, data, tmp_path / "parts", model, protocol="plain", through=("generate",))
    counts = []
    for number in (0, 1, 1):
        heard.clear()
        sat(
            "libritts",
            LIBRITTS,
            data,
            tmp_path / "parts",
            model,
            protocol="plain",
            through=("judge",),
            share=Share(number, 2),
        )
        counts.append(len(heard))
        if not number:
            with pytest.raises(UserError, match="answers are not judged yet"):
                sat("libritts", LIBRITTS, data, tmp_path / "parts", model, protocol="plain", through=("score",))
    references = sorted((tmp_path / "parts/benchmarks/libritts-plain").glob("references-*.jsonl"))
    content = references[0].read_bytes()
    references[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"of 3 references are not judged yet"):
        sat("libritts", LIBRITTS, data, tmp_path / "parts", model, protocol="plain", through=("score",))
    references[0].write_bytes(content)
    parts = sat("libritts", LIBRITTS, data, tmp_path / "parts", model, protocol="plain", through=("score",))
    assert counts[0] > 0 and counts[0] + counts[1] == 6 and counts[2] == 0
    assert parts | {"seconds": 0} == whole | {"seconds": 0}


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


def test_one_recording_that_cannot_be_read_is_counted(tmp_path, capsys):
    data = librispeech(tmp_path / "data", "openslr")
    (data / "test-clean" / "61" / "7" / "61-7-0001.flac").write_bytes(b"RIFF")
    entry = sat("librispeech", LIBRISPEECH, data, tmp_path / "out", text(lambda request: "NO"))
    assert (entry["n"], entry["of"], entry["skipped"]) == (2, 3, 1) and entry["published"] == []
    assert "1 items cannot be read and are passed over; test-clean, 61-7-0001" in capsys.readouterr().err


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


def test_latencies_are_medians_without_the_first(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 23, 30, 34, 40, 48, 50, 52, 60, 62, 70, 74])
    asked = []

    def opened(settings):
        ((name, decoding),) = settings.items()
        asked.append((name, decoding.sampler.steps, decoding.sampler.steps_per_token))
        return Scripted(lambda request: Response(audio=tone(seconds=2.0), steps=8))

    rows = (latency.ROWS[2], latency.ROWS[6])
    entry = latency.measure(opened, 3, rows, clock=lambda: next(ticks))
    assert asked == [("t2i", 10, 1.0), ("tts", None, 0.125)]
    assert entry["metrics"] == {rows[0].metric: 3, rows[1].metric: 1}  # of 2, 3, 4 s; of 2, 2, 4 s for 2 s of speech
    compiled = {f"seconds of compilation, {row.metric}": 6 for row in rows}
    assert entry["notes"] == compiled | {f"steps that were enough, {rows[0].metric}": 8}
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
