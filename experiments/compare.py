"""Ways to decode beside each other: what each scores on a task's exam, how often it calls the model, and whether fewer
calls are as good.

    omnidiff compare --model=nano --task=t2i --way=schedule --way=threshold:0.9 --way=threshold:0.5
    omnidiff compare --workdir=DIR --exam=scenes_tuning --cases=64 --way=schedule --way=own
    omnidiff compare --preset=fast --exam=scenes --cases=300

The first way is what the others are compared with: one that has at least --fewer times fewer calls and is not worse by
more than --most passes; the last line above is the gate of a preset, on every task. Intervals are of 95 %, those of
differences over the same cases (paired bootstrap).
"""

import json

from experiments.common import Command
from experiments.named_model import model_flags, model_named, preset_flag, quantize_flag
from experiments.programs import EXAMS
from omnidiff_jax.answering.load import load
from omnidiff_jax.config import choose
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.decodings import OWN, Sat, gate, sit_ways
from omnidiff_jax.tasks.registry import task

COMMAND = Command("compare", __doc__)
WORKDIR, MODEL = model_flags(COMMAND)
PRESET = preset_flag(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
EXAM = COMMAND.string("exam", f"what is sat: {', '.join(EXAMS)}", "scenes_tuning")
DATA = COMMAND.string("data", "what an exam of one's own data examines")
TASK = COMMAND.strings("task", "only this task; may be given several times")
WAY = COMMAND.strings(
    "way",
    "own, a kind of sampler.reveal with its number (threshold:0.7, schedule:8), of sampler.confidence (halton) or of "
    "sampler.drafting (verify:3), or wino; may be given several times (default: schedule and own)",
)
CASES = COMMAND.integer("cases", "cases of each task", 64, minimum=1)
ROWS = COMMAND.integer("rows", "answered together", 32, minimum=1)
FEWER = COMMAND.number("fewer", "times fewer calls that pass", 4.0)
MOST = COMMAND.number("most", "by how much worse a score may be and pass", 0.02)
JSON = COMMAND.switch("json", "a line of JSON for each way instead")


def run() -> None:
    exam = choose(EXAMS, str(EXAM.value), "exam")
    names = [task(name).name for name in TASK.value] or list(exam.tasks)
    for name in names:
        if name not in exam.tasks:
            raise UserError(f"--exam={EXAM.value} has no task {name!r}; it has {', '.join(exam.tasks)}")
    if exam.needs_data and not DATA.value:
        raise UserError(f"--exam={EXAM.value} needs --data: {exam.needs_data}")
    model = load(
        model_named(WORKDIR.value, MODEL.value),
        rows=ROWS.value or 1,
        preset=str(PRESET.value),
        quantize=QUANTIZE.value or "",
    )
    ways = WAY.value or ["schedule", OWN]
    for name in names:
        first: Sat | None = None
        for sat in sit_ways(exam.exam(name, CASES.value or 1, DATA.value), model.generator, ways):
            print(line(name, sat, first), flush=True)
            first = first or sat


def line(name: str, sat: Sat, first: Sat | None) -> str:
    """What is printed of one way; `first` is what it is compared with."""
    found = sat.summary()
    compared = None if first is None else gate(first, sat, fewer=float(FEWER.value or 0), most=float(MOST.value or 0))
    if JSON.value:
        words = {} if compared is None else {
            "times_fewer": compared.times_fewer,
            "worse": compared.worse.value,
            "worse_interval": compared.worse.interval,
            "passed": compared.passed,
        }  # fmt: skip
        return json.dumps({"task": name} | found | words)
    low, high = found["interval"]
    least, *_, most = found["calls_spread"]
    text = (
        f"{name:12} {sat.way:20} {sat.metric} {found['value']:.3f} ({low:.3f} to {high:.3f}), "
        f"{found['calls']:.1f} calls ({least:.0f} to {most:.0f})"
    )
    if compared is None:
        return text
    low, high = compared.worse.interval
    return (
        f"{text}; {compared.times_fewer:.1f} times fewer, worse by {compared.worse.value:+.3f} ({low:+.3f} to "
        f"{high:+.3f}): {'passes' if compared.passed else 'does not pass'}"
    )


if __name__ == "__main__":
    COMMAND.main(run)
