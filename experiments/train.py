"""Trains what a config describes: the any-to-any model through its three stages, or one of the tokenizers.

    omnidiff train --config=experiments/configs/nano.py --workdir=DIR
    omnidiff train --config=experiments/configs/tokenizers/image.py --workdir=DIR

Goes on from the newest checkpoint in the workdir. Leaves metrics.jsonl, TensorBoard events and checkpoints/; a
tokenizer is also exported to DIR/export, in the form that `config.tokenizers` takes.
"""

import json
from pathlib import Path

from experiments.common import Command
from experiments.programs import PROGRAMS
from experiments.programs.run import plain
from experiments.programs.text_tokenizer import train_text_tokenizer
from omnidiff_jax.config import choose
from omnidiff_jax.training.loop import train
from omnidiff_jax.training.step import eval_params

COMMAND = Command("train", __doc__)
CONFIG = COMMAND.config("experiments/configs/nano.py")
WORKDIR = COMMAND.string("workdir", "folder of the run", required=True)


def run() -> None:
    config, workdir = CONFIG.value, Path(str(WORKDIR.value))
    if config.program == "text_tokenizer":  # counted, not trained step by step
        train_text_tokenizer(config, workdir / "export")
        return
    built = choose(PROGRAMS, config.program, "config.program")(config, workdir)
    state = train(
        built.program,
        built.loop,
        built.optimizer,
        built.stages,
        workdir,
        built.mesh,
        run_config=plain(config),
        same_config=built.same_config,
    )
    params = eval_params(state)
    report = built.program.validate(params)
    built.program.export(params, workdir / "export")
    if report:
        (workdir / "validation.json").write_text(json.dumps(report, indent=2) + "\n")
        print("  ".join(f"{name} {value:.4g}" for name, value in report.items()))


if __name__ == "__main__":
    COMMAND.main(run)
