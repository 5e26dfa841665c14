"""Answers one request with a trained model: any task, text on stdout, pictures and speech as files.

omnidiff sample --task=t2i --text="a red circle in the upper left corner" --out=picture.png      the shipped model
omnidiff sample --workdir=DIR --task=t2i --text="small red circle top left, on white" --out=picture.png
omnidiff sample --workdir=DIR --task=asr --audio=speech.wav
omnidiff sample --config=experiments/configs/dream7b.py --config.init.folder=CONVERTED --task=vqa --image=… --text=…
omnidiff sample --workdir=DIR --task=t2i --text="…" --config.decoding.t2i.sampler.guidance.scale=2.0
omnidiff sample --workdir=DIR --task=inpainting --image=in.png --text="..." --hole=0,0,32,32 --out=filled.png
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Command
from experiments.named_model import model_and_config, model_flags, preset_flag, quantize_flag, seed_flag
from omnidiff_jax.answering.load import load
from omnidiff_jax.answering.model import Answer
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import check_place, path
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import read_image, write_png
from omnidiff_jax.tasks.registry import TASKS, AnswerKind, task
from omnidiff_jax.words import is_blank

COMMAND = Command("sample", __doc__)
CONFIG = COMMAND.config(at_once=False)
WORKDIR, MODEL = model_flags(COMMAND)
PRESET = preset_flag(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
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
SUFFIXES: dict[AnswerKind, str] = {
    "text": "",
    "image": ".png",
    "hole": ".png",
    "speech": ".wav",
    "text_and_speech": ".wav",
}


def run() -> None:
    what, options = model_and_config(CONFIG, WORKDIR.value, MODEL.value)
    chosen, seed = task(str(TASK.value)), seed_flag(SEED.value)
    asked: dict[str, Any] = {
        "text": TEXT.value or "",
        "image": read_image(IMAGE.value) if IMAGE.value else None,
        "audio": read_audio(AUDIO.value) if AUDIO.value else None,
        "hole": parse_hole(HOLE.value) if HOLE.value else None,
    }
    chosen.check_inputs(_given(asked), shown="--{}".format)
    out = out_file(chosen.answer, str(OUT.value))
    settings = {"steps": STEPS.value, "length": LENGTH.value, "temperature": TEMPERATURE.value}
    answer = load(what, rows=1, preset=str(PRESET.value), quantize=QUANTIZE.value or "", **options).answer(
        chosen.name,
        **asked,
        seed=seed,
        settings={name: value for name, value in settings.items() if value is not None},
    )
    leave(answer, chosen.answer, out, f"this {chosen.name} request")


def _given(asked: dict) -> set[str]:
    return {
        name for name, value in asked.items() if value is not None and not (isinstance(value, str) and is_blank(value))
    }


def parse_hole(text: str) -> tuple[int, ...]:
    """(left, top, right, bottom) of "left,top,right,bottom".

    Raises:
        UserError: not four numbers.
    """
    try:
        box = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--hole={text} must be four whole numbers: left,top,right,bottom") from error
    if len(box) != 4:
        raise UserError(f"--hole={text} must be four whole numbers: left,top,right,bottom")
    return box


def out_file(kind: AnswerKind, name: str) -> Path | None:
    """Where an answer's medium goes, with the ending of its form; None for answers in text alone.

    Raises:
        UserError: a folder, another ending, or a place that cannot be written.
    """
    suffix = SUFFIXES[kind]
    if not suffix:
        return None
    out = path(name)
    if name.endswith("/") or out.is_dir() or not out.name:
        raise UserError(f"--out={name} names no file; give one, such as answer{suffix}")
    if out.suffix and out.suffix.lower() != suffix:
        raise UserError(f"--out={out} must end with {suffix}, the form of this answer")
    out = out if out.suffix else out.with_suffix(suffix)
    check_place(out)
    return out


def leave(answer: Answer, kind: AnswerKind, out: Path | None, what: str) -> None:
    """Prints an answer's text, writes its media, and says on stderr what is missing or cut."""
    if answer.empty:
        raise UserError(f"the model's answer to {what} is empty; train it longer or ask another way")
    if answer.text:
        print(answer.text)
    if answer.image is not None and out is not None:
        write_png(out, np.asarray(answer.image))
        print(out)
    if answer.audio is not None and out is not None:
        answer.audio.save(out)
        print(out)
    elif kind == "text_and_speech":
        print("the answer was not spoken: the model wrote no speech codes", file=sys.stderr)
    if answer.blank:
        print(
            "the picture shows nothing, one colour all over: ask in other words, or with another --seed",
            file=sys.stderr,
        )
    if answer.finish == "length":
        print("the answer filled all its positions without an end: it may be cut; --length gives more", file=sys.stderr)
    if answer.finish == "steps":
        print("positions of the answer are still masked; --steps gives more", file=sys.stderr)


if __name__ == "__main__":
    COMMAND.main(run)
