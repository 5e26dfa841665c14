"""Bad input at the level of commands: a status, one line saying what, where and what would be right, no half files."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import soundfile
from tiny_run import untrained, write_config

from experiments import bench as bench_command
from experiments import data as data_command
from experiments import evaluate as evaluate_command
from experiments import preflight as preflight_command
from experiments import quickstart as quickstart_command
from experiments import sample as sample_command
from experiments import train as train_command
from experiments.common import load_config
from omnidiff_jax.answering.load import denoiser
from omnidiff_jax.cli import guard
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.config import difference
from omnidiff_jax.data.storage import EncodedSet
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import Waveform
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.runs.stored import newest, open_here, restore
from omnidiff_jax.sharding.mesh import MeshConfig
from omnidiff_jax.tokenizers.assets import nano_dir
from omnidiff_jax.training.digest import write_digest
from omnidiff_jax.training.operations.metrics import read_metrics

RATE = 16000
VQA = {
    "messages": [
        {"role": "user", "content": "what is it\n<|image|>"},
        {"role": "assistant", "content": "a cross"},
    ],
    "images": ["good.png"],
}


def tone(seconds=1.0, rate=RATE):
    return (np.sin(np.arange(int(seconds * rate)) / 9) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder of good, odd and bad files."""
    folder = tmp_path_factory.mktemp("media")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    write_png(folder / "good.png", picture)
    write_wav(folder / "good.wav", Waveform(tone(), RATE))
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:200])
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:9000])
    (folder / "text.wav").write_text("not a sound")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "silent.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(folder / "8bit.wav", tone(), RATE, subtype="PCM_U8")
    soundfile.write(folder / "96k.wav", tone(1.0, 96000), 96000)
    soundfile.write(folder / "stereo.wav", np.stack([tone(), -tone() / 3], axis=1), RATE)
    broken = tone()
    broken[77] = np.nan
    soundfile.write(folder / "nan.wav", broken, RATE, subtype="FLOAT")
    return folder


def manifest(folder, *lines):
    path = folder / "set.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, media):
    """(config file, workdir): one stage of VQA on an encoded set, and a checkpoint of its first state."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_config(folder)
    config = folder / "vqa.py"
    config.write_text(
        base.read_text().replace(
            "    return config",
            "    config.batch_size = 8  # as many rows as the test session has devices\n"
            '    config.stages = type(config)({"only": {"steps": 3, "learning_rate": 1e-3, "weights": {"vqa": 1.0}}})\n'
            f'    config.data.set, config.data["folder"] = "encoded", {str(folder / "sets")!r}\n'
            "    return config",
        )
    )
    words = [f"--config={config}", "--task=vqa", f"--jsonl={manifest(media, *[VQA] * 8)}"]
    data_command.COMMAND.call(data_command.run, ["build", str(folder / "sets"), *words])
    untrained(load_config(str(config)), folder / "run")
    return config, folder / "run"


@pytest.fixture
def refusal(capfd):
    """Runs a command; returns the one line it must leave on stderr."""

    def run(module, *words):
        capfd.readouterr()
        command = module.COMMAND
        assert guard(command.program, lambda: command.call(module.run, list(map(str, words)))) == 2
        printed = capfd.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed
        assert printed.err.startswith(f"{command.program}: ") and "Traceback" not in printed.err
        return printed.err

    return run


@pytest.fixture
def sampling(refusal, tiny, tmp_path):
    """`omnidiff sample` that must refuse and leave no file."""

    def run(*words):
        said = refusal(sample_command, f"--workdir={tiny[1]}", f"--out={tmp_path / 'answer'}", *words)
        assert list(tmp_path.iterdir()) == []
        return said

    return run


def test_unknown_config_keys_and_tasks(refusal, tiny, tmp_path):
    config, _ = tiny
    base = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert "unknown config key 'batchsize'" in refusal(train_command, *base, "--config.batchsize=3")
    assert "did you mean 'model.layers'?" in refusal(train_command, *base, "--config.model.layrs=3")
    assert "'batch_size' = 'many' must be int" in refusal(train_command, *base, "--config.batch_size=many")
    assert "did you mean 'omni'?" in refusal(train_command, *base, "--config.program=onmi")
    assert "did you mean 'encoded'?" in refusal(train_command, *base, "--config.data.set=encodde")
    assert "tiny/nothing.py does not exist" in refusal(train_command, "--config=tiny/nothing.py", *base[1:])
    assert "batch_size = 6 rows cannot be split over 8 devices" in refusal(
        train_command, *base, "--config.batch_size=6"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text(config.read_text().replace('"vqa": 1.0', '"vqq": 1.0'))
    said = refusal(train_command, f"--config={wrong}", base[1])
    assert "config.stages weighs 'vqq', no source or task; did you mean 'vqa'?" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("config.checkpoint_evry = 3", "unknown key config.checkpoint_evry; did you mean 'checkpoint_every'?"),
        ("config.data['max_tail_pad'] = 0", "unknown key config.data.max_tail_pad; did you mean 'max_tail_pads'?"),
        ("config.tokenizers['txt'] = 'nano'", "unknown key config.tokenizers.txt; did you mean 'text'?"),
        ("config.stages.only['final_fracton'] = 1.0", "unknown key config.stages.only.final_fracton"),
        ("config.loss.aligment = 'shifted'", "unknown key config.loss.aligment; did you mean 'alignment'?"),
        ("config.masking = 'papre'", "did you mean 'paper'?"),
        ("config.optimizer.algorithm = 'sgd'", "config.optimizer.algorithm = 'sgd'"),
        ("config.model.kv_heads = 0", "kv_heads = 0 must be at least 1"),
        ("config.model.attention = 'chunkd'", "unknown attention backend 'chunkd'; did you mean 'chunked'?"),
        ("config.dtype = 'float33'", "dtype = 'float33'; did you mean 'float32'?"),
        ("config.checkpoint_every = -1", "every = -1 must be at least 1"),
        ("config.total_steps = -1", "config.total_steps = -1 must be at least 0"),
        ("config.accumulate = 0", "config.accumulate = 0 must be at least 1"),
        ("config.seed = 2**32", "config.seed = 4294967296 must be at most 4294967295"),
        ("config.stages.only.learning_rate = float('nan')", "learning_rate = nan must be a finite number"),
        ("config.stages.only.weights.vqa = float('inf')", "vqa = inf must be a finite number"),
        ("config.optimizer.b2 = 2.0", "config.optimizer.b2 = 2.0 must be below 1"),
        ("config.optimizer.clip_norm = -1.0", "config.optimizer.clip_norm = -1.0 must be above 0"),
        ("config.data.streams = 0", "config.data.streams = 0 must be at least 1"),
        ("config.stages.only.weights = {'inpainting': 1.0}", "config.stages weighs 'inpainting'"),
    ],
)
def test_config_files_that_cannot_be_used(refusal, tiny, tmp_path, line, expected):
    """Said before any data set is built, and nothing is left behind."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(tiny[0].read_text().replace("    return config", f"    {line}\n    return config"))
    words = (f"--config={wrong}", f"--workdir={tmp_path / 'run'}", "--config.data.set=scenes")
    assert expected in refusal(train_command, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.py"]


def test_configs_of_another_program(refusal, tmp_path):
    config = "--config=experiments/configs/tokenizers/image.py"
    for module, words in (
        (quickstart_command, (f"--workdir={tmp_path / 'run'}",)),
        (data_command, ("build", tmp_path / "sets")),
        (bench_command, ("train",)),
        (preflight_command, ("--topology=cpu:1",)),
        (sample_command, ("--task=t2i", "--text=red", "--config.program=image_tokenizer")),
    ):
        said = refusal(module, *words, config)
        assert "config.program = 'image_tokenizer'; this needs a config of program 'omni'" in said
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_program(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    (stored,) = (tmp_path / "run" / "checkpoints").glob("*/config/metadata")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"program": "speech_encoder"}))
    write_digest(stored.parents[1])
    for module, words in ((sample_command, ("--task=text_qa", "--text=hi")), (evaluate_command, ())):
        said = refusal(module, f"--workdir={tmp_path / 'run'}", *words)
        assert "trained the speech_encoder; name the folder of a run of the whole model" in said


def test_other_tokenizers_than_the_runs(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    (stored,) = (tmp_path / "run" / "checkpoints").glob("*/config/metadata")
    kept = json.loads(stored.read_text())
    kept["tokenizers"]["fingerprint"] = "those of before"
    stored.write_text(json.dumps(kept))
    write_digest(stored.parents[1])
    said = refusal(sample_command, f"--workdir={tmp_path / 'run'}", "--task=text_qa", "--text=hi")
    assert "was trained with other tokenizers" in said and "those of before" in said
    said = refusal(train_command, f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}")
    assert "config.tokenizers.fingerprint = 'those of before', this config has" in said


def test_what_is_computed_otherwise_is_no_other_config(tiny):
    words = ("--config.model.attention=cudnn", "--config.model.remat=full", "--config.loss.chunk=7")
    words += ("--config.data.folder=elsewhere", "--config.tokenizers.speech_decoder=elsewhere", "--config.accumulate=2")
    stored, changed = (run_config(load_config(str(tiny[0]), given)) for given in ((), words))
    assert stored != changed and difference(stored, changed) is None
    other = run_config(load_config(str(tiny[0]), ["--config.model.rope_theta=7.0"]))
    assert difference(stored, other) == ("model.rope_theta", 1000.0, 7.0)


def test_a_run_answers_on_other_devices_with_its_own_alignment(tiny):
    """Its mesh and attention are not to be had here; its loss's predictor is the sampler's."""
    words = ["--config.mesh.tensor=3", "--config.model.attention=splash"]
    found = newest(tiny[1])
    config = run_config(load_config(str(tiny[0]), words))
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, alignment="same_position"))
    run = open_here(config, open_tokenizers(config.tokenizers))
    assert run.config.model.attention == "chunked" and run.config.mesh == MeshConfig(fsdp=-1)
    assert config.model.attention == "splash"
    assert denoiser(run, run.program.whole(restore(found, run))).alignment == "same_position"


def test_jsonl_is_trained_on_past_its_faults(tiny, media, tmp_path, capfd):
    """Media encoded while training; what cannot be used is counted in the metrics."""
    bad = [VQA | {"images": ["absent.png"]}, VQA | {"images": ["cut.png"]}]
    lines = "".join(json.dumps(line) + "\n" for line in (*[VQA] * 4, *bad, *[VQA] * 6))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "vqa.jsonl").write_text(lines)
    for name in ("good.png", "cut.png"):
        shutil.copy(media / name, tmp_path / "raw")
    words = [f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}", "--config.data.set=jsonl"]
    words += [f"--config.data.folder={tmp_path / 'raw'}"]
    command = train_command.COMMAND
    assert guard(command.program, lambda: command.call(train_command.run, words)) == 0, capfd.readouterr().err
    counted = [line["rejected"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "rejected" in line]
    assert set(counted[-1]) == {"vqa: missing image", "vqa: unusable image"} and min(counted[-1].values()) >= 1


def test_a_misspelt_task_is_answered_with_the_nearest(refusal, tiny):
    workdir = f"--workdir={tiny[1]}"
    for module in (sample_command, evaluate_command):
        assert "did you mean 't2i'?" in refusal(module, workdir, "--task=t2j")
    assert "--task" in refusal(sample_command, workdir)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("absent.png", "absent.png does not exist"),
        ("cut.png", "cut.png is damaged"),
        ("text.png", "text.png is not a readable image"),
        ("good.wav", "good.wav is not a readable image"),
    ],
)
def test_pictures_that_cannot_be_used(sampling, media, file, expected):
    assert expected in sampling("--task=vqa", "--text=what is it", f"--image={media / file}")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("absent.wav", "absent.wav does not exist"),
        ("cut.wav", "cut.wav is cut short"),
        ("text.wav", "text.wav is not readable audio"),
        ("empty.wav", "empty.wav is empty"),
        ("silent.wav", "silent.wav has 0 samples"),
        ("nan.wav", "nan.wav holds 1 NaN or infinite samples, the first at 77"),
    ],
)
def test_sounds_that_cannot_be_used(sampling, media, file, expected):
    assert expected in sampling("--task=asr", f"--audio={media / file}")


def test_requests_that_do_not_fit(sampling, media):
    assert "needs --audio" in sampling("--task=asr")
    assert "does not take --image" in sampling("--task=t2i", "--text=red", f"--image={media / 'good.png'}")
    assert "must be four whole numbers" in sampling(
        "--task=inpainting", "--text=red", "--hole=1,2,3", f"--image={media / 'good.png'}"
    )
    assert "must be a box" in sampling(
        "--task=inpainting", "--text=red", "--hole=0,0,65,9", f"--image={media / 'good.png'}"
    )
    assert "must end with .png" in sampling("--task=t2i", "--text=red", "--out=answer.jpg")
    assert "--steps=0" in sampling("--task=t2i", "--text=red", "--steps=0")
    assert "has the length of a picture" in sampling("--task=t2i", "--text=red", "--length=9")
    for value in ("-1", "nan"):
        assert "temperature" in sampling("--task=t2i", "--text=red", f"--temperature={value}")
    assert "--seed=4294967296 must be below 2^32" in sampling("--task=t2i", "--text=red", "--seed=4294967296")
    assert "<|image|>" in sampling("--task=t2i", "--text=red <|image|>")


def test_requests_over_the_canvas(sampling, tiny, tmp_path_factory):
    limit = f"the canvas has {load_config(str(tiny[0])).data.length};"
    said = sampling("--task=text_qa", f"--text={'word ' * 500}")
    assert limit in said and "shorten" in said
    long = tmp_path_factory.mktemp("long") / "long.wav"
    write_wav(long, Waveform(tone(60.0), RATE))
    assert limit in sampling("--task=asr", f"--audio={long}")


@pytest.mark.parametrize("file", ["good.wav", "8bit.wav", "96k.wav", "stereo.wav"])
def test_odd_sounds_are_taken(tiny, media, tmp_path, capfd, file):
    words = [
        f"--workdir={tiny[1]}",
        "--task=s2i",
        f"--audio={media / file}",
        f"--out={tmp_path / 'drawn'}",
        "--steps=2",
    ]
    capfd.readouterr()
    command = sample_command.COMMAND
    assert guard(command.program, lambda: command.call(sample_command.run, words)) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'drawn.png'}\n" and (tmp_path / "drawn.png").stat().st_size > 100


def test_folders_without_a_run(refusal, tiny, tmp_path):
    for module, words in ((sample_command, ("--task=text_qa", "--text=hi")), (evaluate_command, ())):
        said = refusal(module, f"--workdir={tmp_path / 'absent'}", *words)
        assert "no checkpoints in" in said and "omnidiff train" in said
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert "no checkpoints in" in refusal(module, f"--workdir={tmp_path / 'run'}", *words)
    assert not (tmp_path / "absent").exists()


def test_another_config_is_refused_before_data_are_built(refusal, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    generated = (f"--config={tiny[0].with_name('tiny.py')}", "--config.batch_size=8")
    said = refusal(train_command, *generated, f"--workdir={tmp_path / 'run'}")
    assert "checkpoint 1 of --workdir was trained with config." in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_checkpoint_of_another_config(refusal, tiny):
    config, workdir = tiny
    before = sorted(path.relative_to(workdir) for path in workdir.rglob("*"))
    said = refusal(train_command, f"--config={config}", f"--workdir={workdir}", "--config.model.layers=3")
    assert "was trained with config.model.layers = 2, this config has 3" in said and "value of before" in said
    assert sorted(path.relative_to(workdir) for path in workdir.rglob("*")) == before


def test_bad_lines_are_counted_and_the_rest_is_used(tiny, media, tmp_path, capsys):
    hear = {
        "messages": [{"role": "user", "content": "<|audio|>\n<|image|>"}, {"role": "assistant", "content": "yes"}],
        "images": ["good.png"],
    }
    lines = manifest(
        media,
        VQA,
        '{"messages": [',
        VQA | {"images": ["absent.png"]},
        VQA | {"images": ["cut.png"]},
        VQA | {"images": []},
        VQA | {"messages": VQA["messages"][:1]},
        *(
            hear | {"audios": [name]}
            for name in ("absent.wav", "silent.wav", "nan.wav", "96k.wav", "stereo.wav", "8bit.wav")
        ),
    )
    expected = {
        "line is not JSON": 1,
        "missing image": 1,
        "unusable image": 1,
        "images do not match the tags": 1,
        "no assistant message": 1,
        "missing audio": 1,
        "unusable audio": 2,
    }
    command = data_command.COMMAND
    assert guard(command.program, lambda: command.call(data_command.run, ["check", str(lines), "--json"])) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 4 and report["rejected"] == expected
    # The first line is heard nowhere: as a sample of this task, checking and building leave it out alike.
    expected["not a sample of its task"] = 1
    words = ["check", str(lines), "--task=spoken_vqa", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 3 and report["rejected"] == expected
    words = ["build", str(tmp_path / "sets"), f"--config={tiny[0]}", "--task=spoken_vqa", f"--jsonl={lines}", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["spoken_vqa"]
    assert report["examples"] == 3 and report["rejected"] == expected


def test_sdvi_is_built_from_written_questions(capfd, refusal, media, tmp_path):
    def pair(question, answer):
        turns = [{"role": "user", "content": f"{question}\n<|image|>"}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "images": VQA["images"]}

    written = manifest(media, pair("what is in the picture", "a red circle"), pair("what is 3 + 4", "7"))
    command = data_command.COMMAND
    words = ["build", str(tmp_path / "sdvi"), "--task=spoken_vqa", f"--sdvi={written}", "--json"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])["spoken_vqa"]
    assert report.pop("seconds") > 1.0
    assert report == {"accepted": 1, "rewritten": 0, "clips": 2, "rejected": {"mathematics": 1}}
    (line,) = (tmp_path / "sdvi" / "data.jsonl").read_text().splitlines()
    assert len(json.loads(line)["audios"]) == 2, "the question and the answer are spoken"
    assert "--sdvi needs --task" in refusal(data_command, "build", tmp_path / "other", f"--sdvi={written}")
    assert "sdvi.task = 'asr'" in refusal(data_command, *words[:1], tmp_path / "other", "--task=asr", words[3])
    settings = tmp_path / "sdvi.json"
    settings.write_text(json.dumps({"source": {"reader": "jsonl"}, "task": "spoken_vqa", "speeker": {}}))
    assert "did you mean 'speaker'?" in refusal(data_command, "build", tmp_path / "other", f"--sdvi={settings}")


def test_manifests_that_cannot_be_built(refusal, tiny, media, tmp_path):
    config = f"--config={tiny[0]}"
    good = manifest(media, VQA)
    absent = refusal(data_command, "check", tmp_path / "absent.jsonl")
    assert "cannot read" in absent and "absent.jsonl" in absent
    assert "--jsonl needs --task" in refusal(data_command, "build", tmp_path / "a", config, f"--jsonl={good}")
    assert "did you mean 'build'?" in refusal(data_command, "biuld", tmp_path / "a", config)
    (tmp_path / "taken" / "vqa").mkdir(parents=True)
    (tmp_path / "taken" / "vqa" / "something").touch()
    said = refusal(data_command, "build", tmp_path / "taken", config, "--task=vqa", f"--jsonl={good}")
    assert "exists already" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_samples_train_the_task_that_is_asked_for(capfd, tiny, media, tmp_path):
    """Whatever their lines say, or their media amount to; a task that does not exist is rejected with its reason."""
    command = data_command.COMMAND
    lines = manifest(media, VQA, VQA | {"task": "text_qa"})
    words = ["build", str(tmp_path), f"--config={tiny[0]}", "--task=captioning", f"--jsonl={lines}"]
    assert guard(command.program, lambda: command.call(data_command.run, words)) == 0
    found = EncodedSet(
        tmp_path / "captioning", open_tokenizers(run_config(load_config(str(tiny[0]))).tokenizers).fingerprint
    )
    assert [found[i].task for i in range(len(found))] == ["captioning"] * 2
    capfd.readouterr()
    lines = manifest(media, VQA, VQA | {"task": "foo"})
    assert guard(command.program, lambda: command.call(data_command.run, ["check", str(lines), "--json"])) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["accepted"] == 1 and report["rejected"] == {"unknown task": 1}


def test_a_batch_that_does_not_divide(refusal, tiny, tmp_path):
    said = refusal(train_command, f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}", "--config.accumulate=3")
    assert "config.batch_size = 8" in said and "config.accumulate = 3" in said and "multiple of 24" in said
    said = refusal(train_command, f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}", "--config.accumulate=0")
    assert "config.accumulate = 0" in said
    assert not (tmp_path / "run").exists()


def test_a_config_beside_a_trained_run(sampling, tiny):
    said = sampling("--task=vqa", "--config=experiments/configs/nano.py")
    assert "has a config of its own" in said
    said = sampling("--task=vqa", "--config.model.layers=3")
    assert "--config.model.layers=3: a trained model stays as it is; only --config.decoding" in said
    said = sampling("--task=vqa", "--config.decoding.vqa.sampler.guidance.scal=3")
    assert "did you mean 'decoding.vqa.sampler.guidance.scale'?" in said


def test_a_run_that_finds_no_data_or_tokenizers(refusal, tiny, tmp_path):
    config = f"--config={tiny[0]}"
    run = f"--workdir={tmp_path / 'run'}"
    said = refusal(train_command, config, run, f"--config.data.folder={tmp_path / 'sets'}")
    assert "build the data set first" in said and str(tmp_path / "sets") in said
    said = refusal(train_command, config, run, f"--config.tokenizers.image={tmp_path / 'absent'}")
    assert "absent" in said and "config.json" in said
    assert not (tmp_path / "run").exists()


def test_broken_weights_are_named(refusal, tiny, tmp_path):
    (tmp_path / "image").mkdir()
    shutil.copy(nano_dir("image_tokenizer") / "config.json", tmp_path / "image")
    (tmp_path / "image" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    words = (f"--config={tiny[0]}", f"--workdir={tmp_path / 'run'}", f"--config.tokenizers.image={tmp_path / 'image'}")
    assert "model.safetensors lacks tensor" in refusal(train_command, *words)
    assert not (tmp_path / "run").exists()


def asked(*turns):
    """A line of questions and answers in turn."""
    pairs = zip(itertools.cycle(["user", "assistant"]), [*turns, "four"][: len(turns) + len(turns) % 2])
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_an_exam_of_which_nothing_can_be_asked(tiny, media, tmp_path, refusal):
    words = [f"--workdir={tiny[1]}", f"--out={tmp_path}"]
    file = manifest(media, asked("what is it", "a", "and now", "b"), VQA | {"images": ["absent.png"]})
    said = refusal(evaluate_command, *words, "--exam=jsonl", "--task=text_qa", f"--data={file}")
    assert "has no line of text_qa for an exam" in said and f"{file}, record 1: more than one question" in said
    said = refusal(evaluate_command, *words, "--exam=jsonl", "--task=vqa", f"--data={file}")
    assert "has no line of vqa" in said and f"{file}, record 2: missing image" in said
    file = manifest(media, asked("Сколько будет"), asked("два и два"))
    said = refusal(evaluate_command, *words, "--exam=jsonl", f"--data={file}")
    assert "exam of text_qa: the model can be asked none of 2 cases" in said and f"{file}, record 2: " in said
    said = refusal(evaluate_command, *words, "--exam=scenes", f"--data={file}")
    assert f"--data={file}: no exam of scenes reads it; add --exam=jsonl" in said
    assert not list(tmp_path.iterdir())


def test_an_exam_of_ones_own_lines(tiny, media, tmp_path, refusal, capfd):
    lines = [
        VQA,
        VQA | {"images": ["absent.png"]},
        {"messages": [{"role": "user", "content": "two and two"}, {"role": "assistant", "content": "four"}]},
    ]
    odd = [asked("Сколько будет два и два"), asked("two and " * 400), asked("what is it", "a", "and now", "b"), "{"]
    file = manifest(media, *lines, *odd, *[VQA] * 2)
    words = [f"--workdir={tiny[1]}", f"--out={tmp_path}", "--exam=jsonl"]
    assert "--exam=jsonl needs --data: a JSONL manifest" in refusal(evaluate_command, *words)
    assert "--exam is missing: this run learned from encoded" in refusal(evaluate_command, *words[:2])
    assert "did you mean 'scenes'" in refusal(evaluate_command, *words[:2], "--exam=scene")
    command = evaluate_command.COMMAND
    given = [*words, f"--data={file}"]
    assert guard(command.program, lambda: command.call(evaluate_command.run, given)) == 0, capfd.readouterr().err
    said = capfd.readouterr().err
    assert f"{file}: 1 of 9 lines are passed over; line is not JSON" in said
    assert f"exam of text_qa: 3 of 4 cases are passed over; {file}, record 6: more than one question" in said
    assert f"{file}, record 4: task text_qa: the model was never taught" in said
    assert f"{file}, record 5: " in said and "shorten the prompt" in said
    assert f"exam of vqa: 1 of 4 cases are passed over; {file}, record 2: missing image" in said
    scorecard = json.loads((tmp_path / "scorecard.json").read_text())
    assert scorecard["tasks"] == {} and scorecard["exams"]["jsonl"]["n"] == 4
    assert scorecard["exams"]["jsonl"]["skipped"] == 4 and scorecard["exams"]["jsonl"]["of"] == 8
    assert {name: entry["n"] for name, entry in scorecard["exams"]["jsonl"]["tasks"].items()} == {
        "text_qa": 1,
        "vqa": 3,
    }
    assert all(entry["ceiling"] == 1.0 for entry in scorecard["exams"]["jsonl"]["tasks"].values())
    assert len((tmp_path / "predictions" / "jsonl" / "vqa.jsonl").read_text().splitlines()) == 3
