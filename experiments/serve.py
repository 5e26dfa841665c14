"""Answers over HTTP: OpenAI's endpoints for text, pictures and speech, all tasks in one process.

    omnidiff serve                                       the shipped model at http://127.0.0.1:8000
    omnidiff serve --workdir=DIR --port=8080
    omnidiff serve --model=FOLDER --quantize=int8 --rows=16
    omnidiff serve --config=experiments/configs/dream7b.py --config.init.folder=CONVERTED
    OMNIDIFF_API_KEY=… omnidiff serve --host=0.0.0.0     clients must show the key; TLS is a proxy's business

It is live at once (/health/live) and ready (/health/ready) when the programs of the tasks in --warm are compiled. On
SIGTERM it takes nothing on any more, answers what is under way, and ends with status 0.
"""

import os
import sys

from experiments.common import Command
from experiments.named_model import model_and_config, model_flags, preset_flag, quantize_flag
from omnidiff_jax.answering.load import load
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.tasks.registry import TASKS

COMMAND = Command("serve", __doc__)
CONFIG = COMMAND.config(at_once=False)
WORKDIR, MODEL = model_flags(COMMAND)
PRESET = preset_flag(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
HOST = COMMAND.string("host", "address to listen at; 0.0.0.0 is every one of this machine", "127.0.0.1")
PORT = COMMAND.integer("port", "to listen at; 0 takes a free one", 8000, minimum=0)
NAME = COMMAND.string("name", "what clients call the model (default: the shipped model's name, or the folder's)")
ROWS = COMMAND.integer("rows", "requests decoded together in each lane", 8, minimum=1)
WARM = COMMAND.string("warm", "tasks whose programs are compiled first: all, none, or names with commas", "all")
QUEUE = COMMAND.integer("queue", "requests that may wait; more are told to come back", 256, minimum=1)
SECONDS = COMMAND.number("seconds", "longest recording that is taken", 60.0)
PATIENCE = COMMAND.number("patience", "seconds until a request that is not answered is given up", 600.0)
DRAIN = COMMAND.number("drain", "seconds that what is under way may take after SIGTERM", 30.0)
TRUST = COMMAND.strings("trust", "a host that pictures may be fetched from by https URLs (none if not given)")
KEY = "OMNIDIFF_API_KEY"


def run() -> None:
    try:
        from omnidiff_jax.serving.limits import Limits
        from omnidiff_jax.serving.server import Server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'omnidiff_jax[serve]'") from error
    warm = _warm(str(WARM.value))
    limits = Limits(queue=QUEUE.value or 1, seconds=SECONDS.value or 0, patience=PATIENCE.value or 0)
    what, options = model_and_config(CONFIG, WORKDIR.value, MODEL.value)
    model = load(what, rows=ROWS.value or 1, preset=str(PRESET.value), quantize=QUANTIZE.value or "", **options)
    name = NAME.value or str(what).rstrip("/").rpartition("/")[2]
    server = Server(
        model,
        name,
        host=str(HOST.value),
        port=PORT.value or 0,
        limits=limits,
        trusted=TRUST.value,
        key=os.environ.get(KEY, ""),
        warm=warm,
        drain=DRAIN.value or 0,
    )
    print(f"omnidiff serve: {name} at {server.url}", file=sys.stderr, flush=True)
    server.run()


def _warm(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return tuple(TASKS) if text == "all" else ()
    for name in text.split(","):
        if name not in TASKS:
            raise UserError(f"--warm={text}: {name!r} is no task; {suggest(name, TASKS)}")
    return tuple(text.split(","))


if __name__ == "__main__":
    COMMAND.main(run)
