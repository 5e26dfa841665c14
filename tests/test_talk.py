"""Where commands leave answers, and what a conversation in the terminal holds."""

import pytest
from PIL import Image

from experiments import chat, evaluate, sample
from omnidiff_jax.answering.model import Answer
from omnidiff_jax.cli import guard
from omnidiff_jax.errors import UserError


def test_a_place_that_cannot_be_written_is_told_before_anything_is_decoded(capfd, tmp_path):
    def refused(module, *words):
        command = module.COMMAND
        # There is no such model: what is told of the place is told before it is looked for.
        assert guard(command.program, lambda: command.call(module.run, ["--model=absent", *map(str, words)])) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "absent" not in said, said
        return said

    (tmp_path / "file").write_text("")
    for where in ("/proc/x", tmp_path / "file" / "x", f"/tmp/{'x' * 300}/x"):
        assert str(where) in refused(sample, "--task=t2i", "--text=red", f"--out={where}/y.png")
        assert str(where) in refused(evaluate, "--exam=scenes", "--task=t2i", f"--out={where}")
        assert str(where) in refused(chat, f"--out={where}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_picture_makes_its_folders(tmp_path):
    out = sample.out_file("image", str(tmp_path / "x" / "y" / "z.png"))
    assert list(tmp_path.iterdir()) == []
    answer = Answer("", Image.new("RGB", (4, 4)), None, "end", 1)
    sample.leave(answer, "image", out, "it")
    with Image.open(out) as image:
        assert image.size == (4, 4)


def test_a_missing_file_is_one_line(capfd):
    assert guard("omnidiff", lambda: open("absent/x.txt").close()) == 2
    assert capfd.readouterr().err == (
        "omnidiff: cannot use absent/x.txt: No such file or directory; name another place\n"
    )


class Parrot:
    """A model whose answers are those it is told; it remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.heard = list(answers), []

    def chat(self, messages, answer, *, seed, settings):
        said = [m["content"] if m["role"] == "user" else m["content"].text for m in messages]
        self.heard.append((seed, [s if isinstance(s, str) else s[0]["text"] for s in said]))
        return Answer(self.answers.pop(0), None, None, "end", 1)


def test_again_keeps_the_question_and_replaces_the_answer():
    model = Parrot("one", "", "two", "three", "", "four", "five")
    talk = chat.Talk(model, "text", 0)
    with pytest.raises(UserError, match="nothing has been asked"):
        talk.hear("/again")
    assert talk.hear("a").text == "one"
    with pytest.raises(UserError, match="empty"):
        talk.hear("b")
    assert talk.hear("/again").text == "two"
    assert talk.hear("/again").text == "three"
    with pytest.raises(UserError, match="empty"):
        talk.hear("c")
    assert talk.hear("d").text == "four"
    assert talk.hear("/again").text == "five"
    assert model.heard == [
        (0, ["a"]),
        (0, ["a", "one", "b"]),
        (1, ["a", "one", "b"]),
        (2, ["a", "one", "b"]),
        (2, ["a", "one", "b", "three", "c"]),
        (2, ["a", "one", "b", "three", "d"]),
        (3, ["a", "one", "b", "three", "d"]),
    ]
    talk.hear("/new")
    with pytest.raises(UserError, match="nothing has been asked"):
        talk.hear("/again")
