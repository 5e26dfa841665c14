"""A conversation with a trained model in the terminal: text, pictures and speech, in and out.

    omnidiff chat --workdir=DIR
    omnidiff chat --model=NAME --answer=text_and_speech --out=FOLDER

Each line is a turn. In it, words are text and these are commands:

    /image FILE     a picture, part of the next turn        /audio FILE     speech, part of the next turn
    /answer FORM    text, speech, image or text_and_speech  /again          asks the last turn again, with another seed
    /new            forgets the conversation                /quit           ends (so does the end of input)

An empty line sends what has been gathered. Pictures and speech of answers are written to --out, numbered.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Command
from experiments.named_model import model_and_config, model_flags, preset_flag, quantize_flag, seed_flag
from omnidiff_jax.answering.conversation import ANSWERS
from omnidiff_jax.answering.load import load
from omnidiff_jax.answering.media import to_audio, to_image
from omnidiff_jax.answering.model import Answer, Model
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import check_place, path
from omnidiff_jax.media.image import write_png

COMMAND = Command("chat", __doc__)
CONFIG = COMMAND.config(at_once=False)
WORKDIR, MODEL = model_flags(COMMAND)
PRESET = preset_flag(COMMAND)
QUANTIZE = quantize_flag(COMMAND)
ANSWER = COMMAND.choice("answer", "form of the answers", ANSWERS, default="text")
OUT = COMMAND.string("out", "folder for pictures and speech", ".")
LENGTH = COMMAND.integer("length", "positions of an answer (default: the task's)", minimum=1)
SEED = COMMAND.integer("seed", "of the sampling noise, below 2^32", 0, minimum=0)


def run() -> None:
    folder = path(str(OUT.value))
    check_place(folder)
    what, options = model_and_config(CONFIG, WORKDIR.value, MODEL.value)
    talk = Talk(
        load(what, rows=1, preset=str(PRESET.value), quantize=QUANTIZE.value or "", **options),
        str(ANSWER.value),
        seed_flag(SEED.value),
    )
    print(f"talking to {what}, answers in {talk.form}; /quit ends", file=sys.stderr)
    while (line := _read(talk.prompt())) is not None and line.strip() not in ("/quit", "/exit"):
        try:
            answer = talk.hear(line.strip())
        except UserError as error:  # one bad turn is not the end of a conversation
            print(f"omnidiff chat: {error}", file=sys.stderr)
            continue
        if answer is not None:
            _leave(answer, folder, talk.turns)


class Talk:
    """What was said so far, and what is being gathered for the next turn.

    Attributes:
        form: of the answers.
        turns: answers so far.
    """

    def __init__(self, model: Model, form: str, seed: int):
        self._model, self.form, self._seed = model, form, seed
        self._said: list[dict[str, Any]] = []  # before the last question
        self._asked: list[dict[str, Any]] = []
        self._answer: Answer | None = None  # None where it was empty, or could not be given
        self._parts: list[dict[str, Any]] = []
        self.turns = 0

    def prompt(self) -> str:
        """What stands before the next line on a terminal."""
        return f"({', '.join(next(iter(part)) for part in self._parts)}) > " if self._parts else "> "

    def hear(self, line: str) -> Answer | None:
        """Takes a line; gives an answer if the line asked for one.

        Raises:
            UserError: an unknown command or form, a file that cannot be used, or a turn that cannot be answered.
        """
        word, _, rest = line.partition(" ")
        if word == "/new":
            self._said, self._asked, self._answer, self._parts = [], [], None, []
            return None
        if word == "/answer":
            if rest.strip() not in ANSWERS:
                raise UserError(f"/answer {rest}: {suggest(rest, ANSWERS)}")
            self.form = rest.strip()
            return None
        if word in ("/image", "/audio"):
            read = to_image if word == "/image" else to_audio
            self._parts.append({word[1:]: read(str(Path(rest.strip()).expanduser()))})
            return None
        if word == "/again":
            if not self._asked:
                raise UserError("/again: nothing has been asked yet")
            self._seed = (self._seed + 1) % (1 << 32)
            return self._ask()
        if word.startswith("/"):
            raise UserError(f"{word}: {suggest(word, ('/image', '/audio', '/answer', '/again', '/new', '/quit'))}")
        if line:
            self._parts.append({"text": line})
        if not self._parts:
            return None
        if self._answer is not None:  # what was not answered was not said
            self._said += [_turn("user", self._asked), _turn("assistant", self._answer)]
        self._asked, self._answer, self._parts = self._parts, None, []
        return self._ask()

    def _ask(self) -> Answer:
        """Answers the last question; the answer takes the place of an earlier one."""
        settings = {"length": LENGTH.value} if LENGTH.value and self.form != "image" else {}
        turns = [*self._said, _turn("user", self._asked)]
        answer = self._model.chat(turns, self.form, seed=self._seed, settings=settings)
        if answer.empty:
            raise UserError("the model's answer is empty; ask another way, or /again")
        self._answer = answer
        self.turns += 1
        return answer


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _read(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _leave(answer: Answer, folder: Path, number: int) -> None:
    if answer.text:
        print(answer.text, flush=True)
    name = folder / f"answer_{number}"
    if answer.image is not None:
        write_png(name.with_suffix(".png"), np.asarray(answer.image))
        print(name.with_suffix(".png"), flush=True)
    if answer.audio is not None:
        answer.audio.save(name.with_suffix(".wav"))
        print(name.with_suffix(".wav"), flush=True)
    if answer.finish != "end":
        print(f"(finish: {answer.finish})", file=sys.stderr)


if __name__ == "__main__":
    COMMAND.main(run)
