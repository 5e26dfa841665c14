"""Time left: what is counted, and how it is said where no terminal is."""

import pytest

from omnidiff_jax import progress as module
from omnidiff_jax.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_start_saves_and_what_is_old_do_not_count(clock):
    progress = Progress(1000)
    clock.now += 300  # compiles
    progress.update(1)
    assert progress.left() == ""
    for step in range(2, 12):
        clock.now += 2
        progress.update(step)
    assert progress.left() == "33 min left"
    clock.now += 500  # saves
    progress.update(12, counted=False)
    assert progress.left() == "33 min left"
    for step in range(13, 100):  # now twice as fast
        clock.now += 1
        progress.update(step)
    assert progress.left() == "15 min left"
    progress.update(50)  # a rewind
    clock.now += 1
    progress.update(51)
    assert progress.left() == "16 min left"
    progress.update(1000)
    assert progress.left() == ""


def test_steps_in_lumps_and_a_resumed_run(clock):
    progress = Progress(1000, initial=400, label="data")
    for done in (400, 400, 410, 410, 430, 450):
        clock.now += 5
        progress.update(done)
    assert progress.left() == "3 min left"  # 40 in 15 s


def test_a_line_now_and_then(clock, capsys):
    with Progress(50, seconds_between_lines=20) as progress:
        for step in range(50):
            clock.now += 3
            progress.update(step + 1, "loss 1.0")
        progress.update(50, "loss 1.0")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 7/50  loss 1.0  2 min left"
    assert said[1] == "step 14/50  loss 1.0  2 min left"
    assert said[-1] == "step 50/50  loss 1.0" and len(said) == 8


def test_durations():
    given = (0.2, 59, 89, 90, 3600, 99 * 60, 100 * 60, 185 * 60, 47.99 * 3600, 49 * 3600)
    words = "1 s|59 s|89 s|2 min|60 min|99 min|1 h 40 min|3 h 05 min|47 h 59 min|2 d 1 h"
    assert [duration(seconds) for seconds in given] == words.split("|")
