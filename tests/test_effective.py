"""The mixture that batches hold, beside the one asked for; weights by epochs; the recipe of the paper's corpora."""

import json
import pickle

import corpora
import numpy as np
import pytest
from data_world import VOCABULARY, example

from experiments import data as data_command
from experiments.common import load_config
from experiments.programs import READERS, OpenSources
from omnidiff_jax.cli import guard
from omnidiff_jax.codecs.tokenizers import open_tokenizers
from omnidiff_jax.data.check import shown_again
from omnidiff_jax.data.config import DataConfig, RejectsConfig
from omnidiff_jax.data.effective import effective_mixture
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.readers import check_source
from omnidiff_jax.data.sources import Source
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Record, RejectedRecord
from omnidiff_jax.runs.config import run_config

CONFIG = DataConfig(seed=3, batch_size=16, streams=4, packing=PackingConfig(256, 0, 32, 4), rejects=RejectsConfig(1.0))


class Lengths:
    """Samples of given lengths; every fifth is broken."""

    def __init__(self, first, size, low, high):
        self.first, self.lengths = first, np.random.default_rng(first).integers(low, high, size)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        if index % 5 == 0:
            raise RejectedRecord("corrupt", str(index))
        return example(self.first + index, "asr", int(self.lengths[index]))


def test_two_corpora_of_a_task_at_three_to_one_are_that_within_one_percent():
    """Of other sizes, lengths and rejects; tokens are what they are."""
    sources = {"clean": Source(Lengths(0, 300, 8, 40), "asr"), "noisy": Source(Lengths(9000, 70, 30, 90), "asr")}
    stages = tuple(
        Stage(100, weights=weights, name=name)
        for name, weights in (("three", {"clean": 3.0, "noisy": 1.0}), ("task", {"asr": 1.0}))
    )
    found = effective_mixture(Corpus(sources, stages, VOCABULARY), CONFIG, 40)
    three = found["three"]
    assert three["clean"]["asked"] == 0.75 and abs(three["clean"]["samples"] - 0.75) < 0.01
    assert three["clean"]["samples"] + three["noisy"]["samples"] == pytest.approx(1)
    assert three["noisy"]["tokens"] > 1.5 * three["noisy"]["samples"]
    assert all(0.15 < source["rejected"] < 0.25 for source in three.values())
    assert three["noisy"]["epochs"] > 0.5 * 300 / 70 * three["clean"]["epochs"] / 3
    assert found["task"]["clean"]["asked"] == pytest.approx(300 / 370, abs=1e-6)
    assert abs(found["task"]["clean"]["samples"] - 300 / 370) < 0.01


def test_epochs_count_samples_and_caps_bound_them():
    sizes, tasks = {"a": 100, "b": 1000, "c": 400}, {"a": "asr", "b": "asr", "c": "tts"}
    stage = Stage(1, epochs={"a": 2.0, "b": 0.5, "c": 1.0}, caps={"c": 50}, name="s")
    assert stage.shares(tasks, sizes) == {"a": 200.0, "b": 500.0, "c": 50.0}
    assert Stage(1, epochs={"asr": 0.5, "c": 0.0}).shares(tasks, sizes) == {"a": 50.0, "b": 500.0, "c": 0.0}
    for given, words in (
        ({"weights": {"a": 1.0}, "epochs": {"b": 1.0}}, "weights and epochs"),
        ({"epochs": {"alpha": 1.0}, "caps": {"alpa": 1}}, "caps 'alpa'.*alpha"),
    ):
        with pytest.raises(UserError, match=words):
            Stage(1, **given)


@pytest.mark.parametrize("form", ["", ":raw"])
def test_the_papers_corpora_are_sources_with_readers(form):
    config = run_config(load_config(f"experiments/configs/paper.py{form}"))
    for name, source in config.sources.items():
        assert check_source(name, source, READERS).gives == ("records" if form else "examples")
        assert source.path == f"data/{name}" or form
    assert len(config.sources) == 16 and config.sources == dict(config.data.sources) | config.sources
    sizes, tasks = dict.fromkeys(config.sources, 1000), {name: source.task for name, source in config.sources.items()}
    first, second, third = (stage.shares(tasks, sizes) for stage in config.plan)
    assert {tasks[name] for name, share in first.items() if share} == {"text_qa", "captioning", "t2i"}
    assert second["emilia"] * 2 == second["librispeech"] == second["audioqa"]
    assert third["audioqa"] == 40 * third["librispeech"] == 80 * third["emilia"] and third["sdvi_vqa"] > 0


def test_a_configs_mixture_is_looked_at_by_a_command(tmp_path, capsys):
    for name, count in (("many", 30), ("few", 5)):
        turns = [
            [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": f"So {n}."}] for n in range(count)
        ]
        corpora.lines(tmp_path / f"{name}.jsonl", [{"messages": messages} for messages in turns])
    (tmp_path / "config.py").write_text(
        f"""
from ml_collections import ConfigDict
from experiments.configs import nano

def get_config():
    config = nano.get_config()
    read = {{"reader": "jsonl", "task": "text_qa"}}
    sources = {{name: read | {{"path": "{tmp_path}/" + name + ".jsonl"}} for name in ("many", "few")}}
    config.data.sources = ConfigDict(sources)
    stage = {{"steps": 10, "learning_rate": 1e-4, "weights": {{"many": 3.0, "few": 1.0}}}}
    config.stages = ConfigDict({{"only": stage}})
    return config
"""
    )
    command = data_command.COMMAND
    words = ["mix", str(tmp_path / "run"), f"--config={tmp_path / 'config.py'}", "--batches=8"]
    assert guard(command.program, lambda: command.call(data_command.run, [*words, "--json"])) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["only"]
    assert found["many"]["asked"] == 0.75 and abs(found["many"]["samples"] - 0.75) < 0.03
    assert found["few"]["examples"] == 5 and found["few"]["epochs"] > found["many"]["epochs"]
    # What a worker process opens is what this one does.
    config = run_config(load_config(str(tmp_path / "config.py")))
    tokenizers = open_tokenizers(config.tokenizers)
    here = OpenSources(config.sources, config.tokenizers, tmp_path, tokenizers=tokenizers)
    there = pickle.loads(pickle.dumps(here))
    assert there.tokenizers is None and list(here()["few"][2].tokens) == list(there()["few"][2].tokens)


class Squares:
    """An image tokenizer that knows a picture's mean in each quarter."""

    assistant_image_size = 8

    @staticmethod
    def images(pixels):
        return pixels.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).round().astype(int)

    @staticmethod
    def draw(codes):
        return codes.repeat(4, 1).repeat(4, 2)


def test_a_tokenizers_error_on_ones_own_pictures_is_told_beside_that_of_a_flat_colour():
    rng = np.random.default_rng(0)
    quarters = rng.integers(0, 256, (2, 2, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    noise = rng.integers(0, 256, (8, 8, 3), np.uint8)

    def record(*images):
        return Record(1, "vqa", (), images)

    known = shown_again([record(quarters)], Squares)
    assert known["pictures"] == 1 and known["psnr"] > 60 > 30 > known["psnr_flat"]
    both = shown_again([record(quarters, noise), record()], Squares)
    assert both["pictures"] == 2 and both["psnr"] < known["psnr"]
    assert shown_again([record()], Squares) == {}
