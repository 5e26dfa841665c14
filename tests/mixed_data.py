"""A manifest of mixed samples with media on disk, for the tests that build sets of it."""

import json
from pathlib import Path

import numpy as np

from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import Waveform

MEDIA = 24
CONFIG = """
from ml_collections import ConfigDict
from experiments.configs import nano


def get_config():
    config = nano.get_config()
    config.data.sources = ConfigDict({"mix": {"reader": "jsonl", "path": PATH}})
    config.stages = ConfigDict({"only": {"steps": 3, "learning_rate": 1e-3, "weights": {"mix": 1.0}}})
    config.data.encoding = ConfigDict({"shard": SHARD, "heard": "features"})
    return config
"""


def write_mixed(folder: Path, count: int, shard: int) -> Path:
    """Writes `count` samples of six kinds, some without their picture, and the config that encodes them as "mix"."""
    rng = np.random.default_rng(0)
    for number in range(MEDIA):
        write_png(folder / f"{number}.png", rng.integers(0, 256, (40 + number, 64, 3), np.uint8))
        time = np.arange(int(16000 * (0.3 + number / 12)))
        sound = 0.4 * np.sin(time * (0.05 + number / 100))
        write_wav(folder / f"{number}.wav", Waveform(sound.astype(np.float32), 16000))
    with (folder / "set.jsonl").open("w") as lines:
        for number in range(count):
            lines.write(json.dumps(_sample(number)) + "\n")
    config = folder / "config.py"
    config.write_text(CONFIG.replace("PATH", repr(str(folder / "set.jsonl"))).replace("SHARD", str(shard)))
    return config


def _sample(number: int) -> dict:
    medium, kind = number * 7 % MEDIA, number % 6
    if number % 300 == 5:
        return _line("what\n<|image|>", "x", images=["none.png"])
    return (
        _line(f"say {number}", f"word {number}", task="text_qa"),
        _line("what\n<|image|>", f"red {number}", images=[f"{medium}.png"]),
        _line(f"draw {number}", "<|image|>", images=[f"{medium}.png"]),
        _line("hear\n<|audio|>", f"one {number}", audios=[f"{medium}.wav"], task="asr"),
        _line(f"speak {number}", "<|audio|>", audios=[f"{medium}.wav"]),
        _line(f"say {number}", f"or {number}", task="text_qa"),
    )[kind]


def _line(user: str, assistant: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], **more}
