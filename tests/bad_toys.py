"""Media good and bad, and the config of a tiny run, for the tests of bad input."""

import json

import numpy as np
import soundfile
from tiny_run import write_config

from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.media.image import write_png
from omnidiff_jax.records import Waveform

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


def write_media(folder):
    """Good, odd and bad files; returns the folder."""
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


def vqa_config(folder):
    """A config file: the tiny model, one stage of VQA on an encoded set in `folder`/sets."""
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
    return config
