"""Answers one request with a trained model: any task, text on stdout, pictures and speech as files.

omnidiff sample --workdir=DIR --task=t2i --text="small red circle top left, on white" --out=picture.png
omnidiff sample --workdir=DIR --task=asr --audio=speech.wav
omnidiff sample --config=experiments/configs/dream7b.py --config.init.folder=CONVERTED --task=vqa --image=… --text=…
omnidiff sample --workdir=DIR --task=t2i --text="…" --config.decoding.t2i.sampler.guidance.scale=2.0
omnidiff sample --workdir=DIR --task=inpainting --image=in.png --text="..." --hole=0,0,32,32 --out=filled.png
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.common import Command, override
from experiments.programs.omni import check_config, decoding_settings, load_generator, stored_config
from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.config import to_dict
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio, write_wav
from omnidiff_jax.media.image import read_image, write_png
from omnidiff_jax.tasks.registry import TASKS, Decoding, Task, task

COMMAND = Command("sample", __doc__)
CONFIG = COMMAND.config("experiments/configs/dream7b.py", at_once=False)
WORKDIR = COMMAND.string("workdir", "folder of a trained run; without it, --config.init.folder says whose weights")
TASK = COMMAND.choice("task", "what to do", tuple(TASKS), required=True)
TEXT = COMMAND.string("text", "the request, question or caption", "")
IMAGE = COMMAND.string("image", "picture to look at or to paint in")
AUDIO = COMMAND.string("audio", "speech to listen to")
HOLE = COMMAND.string("hole", "part of the picture to paint: left,top,right,bottom in pixels of the model's picture")
OUT = COMMAND.string("out", "file for the picture (.png) or speech (.wav) of the answer", "answer")
STEPS = COMMAND.integer("steps", "denoising steps (default: the task's)", minimum=1)
LENGTH = COMMAND.integer("length", "positions of the answer (default: the task's)", minimum=1)
TEMPERATURE = COMMAND.number("temperature", "0 takes the likeliest tokens")
SEED = COMMAND.integer("seed", "of the sampling noise, below 2^32", 0, minimum=0)


def run() -> None:
    workdir = WORKDIR.value
    config = _trained_config(workdir) if workdir else check_config(CONFIG.value)
    if not workdir and not config.get("init", {}).get("folder"):
        raise UserError("--workdir is missing: folder of a trained run (or --config.init.folder: converted weights)")
    chosen = task(str(TASK.value))
    if (SEED.value or 0) >= 1 << 32:
        raise UserError(f"--seed={SEED.value} must be below 2^32")
    if LENGTH.value and chosen.answer in ("image", "hole"):
        raise UserError(
            f"--length={LENGTH.value}: the answer of {chosen.name} has the length of a picture; leave it out"
        )
    size = config.tokenizers.assistant_image_size
    request = Request(
        text=TEXT.value or "",
        image=read_image(IMAGE.value) if IMAGE.value else None,
        audio=read_audio(AUDIO.value) if AUDIO.value else None,
        hole=parse_hole(HOLE.value, size) if HOLE.value else None,
    )
    given = {name for name in ("image", "audio", "hole") if getattr(request, name) is not None}
    chosen.check_inputs(given | ({"text"} if request.text else set()))
    out = _out_file(chosen, Path(str(OUT.value)))
    generator = load_generator(config, workdir, rows=1, seed=SEED.value or 0, adjust=_adjusted)
    (response,) = generator(chosen, [request])
    _leave(chosen, response, out)


def _trained_config(workdir: str) -> ConfigDict:
    """The config of a run, with what the command line says about decoding."""
    if CONFIG.file:
        raise UserError(f"--workdir={workdir} has a config of its own; leave out --config, or --workdir")
    for word in CONFIG.words:
        if not word.lstrip("-").startswith("config.decoding."):
            raise UserError(f"{word}: a trained model stays as it is; only --config.decoding.… can be replaced")
    config = stored_config(workdir)
    config.decoding = ConfigDict({name: to_dict(settings) for name, settings in decoding_settings(config).items()})
    return override(config, CONFIG.words, f"the run in {workdir}")


def _adjusted(decoding: Decoding) -> Decoding:
    sampler = decoding.sampler
    if STEPS.value is not None:
        sampler = dataclasses.replace(sampler, steps=STEPS.value)
    if TEMPERATURE.value is not None:
        try:
            filters = dataclasses.replace(sampler.filters, temperature=TEMPERATURE.value)
        except ValueError as error:
            raise UserError(f"--temperature = {TEMPERATURE.value}: {error}") from error
        sampler = dataclasses.replace(sampler, filters=filters)
    decoding = dataclasses.replace(decoding, sampler=sampler)
    return dataclasses.replace(decoding, length=LENGTH.value, adaptive=None) if LENGTH.value else decoding


def parse_hole(text: str, size: int) -> np.ndarray:
    """bool [size, size] from "left,top,right,bottom".

    Raises:
        UserError: not four numbers, or not a box inside the picture.
    """
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--hole={text} must be four whole numbers: left,top,right,bottom") from error
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(f"--hole={text} must be a box inside the model's picture of {size} x {size} pixels")
    hole = np.zeros((size, size), bool)
    hole[top:bottom, left:right] = True
    return hole


def _out_file(chosen: Task, out: Path) -> Path:
    """`--out` with the ending of the answer's medium; tasks that answer in text write no file."""
    suffix = {"text": "", "image": ".png", "hole": ".png", "speech": ".wav", "text_and_speech": ".wav"}[chosen.answer]
    if suffix and out.suffix and out.suffix != suffix:
        raise UserError(f"--out={out} must end with {suffix}, the form of a {chosen.name} answer")
    return out.with_suffix(suffix) if suffix else out


def _leave(chosen: Task, response: Response, out: Path) -> None:
    if not response.text and response.image is None and response.audio is None:
        raise UserError(
            f"the model's answer to this {chosen.name} request is empty; train it longer or ask another way"
        )
    if response.text:
        print(response.text)
    if response.image is not None:
        write_png(out, response.image)
        print(out)
    if response.audio is not None:
        write_wav(out, response.audio)
        print(out)
    elif chosen.answer == "text_and_speech":
        print("the answer was not spoken: the model wrote no speech codes", file=sys.stderr)


if __name__ == "__main__":
    COMMAND.main(run)
