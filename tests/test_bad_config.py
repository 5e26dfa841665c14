"""Configs that cannot be used: a status, one line saying what, where and what would be right, nothing left behind."""

import shutil

import pytest
from bad_toys import vqa_config

from experiments import bench as bench_command
from experiments import data as data_command
from experiments import preflight as preflight_command
from experiments import quickstart as quickstart_command
from experiments import sample as sample_command
from experiments import train as train_command
from experiments.common import load_config
from omnidiff_jax.config import difference
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.tokenizers.assets import nano_dir


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return vqa_config(tmp_path_factory.mktemp("tiny"))


def test_unknown_config_keys_and_tasks(refusal, config, tmp_path):
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
    ],
)
def test_config_files_that_cannot_be_used(refusal, config, tmp_path, line, expected):
    """Said before any data set is built, and nothing is left behind."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(config.read_text().replace("    return config", f"    {line}\n    return config"))
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


def test_what_is_computed_otherwise_is_no_other_config(config):
    words = ("--config.model.attention=cudnn", "--config.model.remat=full", "--config.loss.chunk=7")
    words += ("--config.data.folder=elsewhere", "--config.tokenizers.speech_decoder=elsewhere", "--config.accumulate=2")
    stored, changed = (run_config(load_config(str(config), given)) for given in ((), words))
    assert stored != changed and difference(stored, changed) is None
    other = run_config(load_config(str(config), ["--config.model.rope_theta=7.0"]))
    assert difference(stored, other) == ("model.rope_theta", 1000.0, 7.0)


def test_a_batch_that_does_not_divide(refusal, config, tmp_path):
    said = refusal(train_command, f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.accumulate=3")
    assert "config.batch_size = 8" in said and "config.accumulate = 3" in said and "multiple of 24" in said
    said = refusal(train_command, f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.accumulate=0")
    assert "config.accumulate = 0" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_finds_no_data_or_tokenizers(refusal, config, tmp_path):
    given = f"--config={config}"
    run = f"--workdir={tmp_path / 'run'}"
    said = refusal(train_command, given, run, f"--config.data.folder={tmp_path / 'sets'}")
    assert "build the data set first" in said and str(tmp_path / "sets") in said
    said = refusal(train_command, given, run, f"--config.tokenizers.image={tmp_path / 'absent'}")
    assert "absent" in said and "config.json" in said
    assert not (tmp_path / "run").exists()


def test_broken_weights_are_named(refusal, config, tmp_path):
    (tmp_path / "image").mkdir()
    shutil.copy(nano_dir("image_tokenizer") / "config.json", tmp_path / "image")
    (tmp_path / "image" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    words = (f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.tokenizers.image={tmp_path / 'image'}")
    assert "model.safetensors lacks tensor" in refusal(train_command, *words)
    assert not (tmp_path / "run").exists()
