"""Measures of the public benchmarks: odd answers under each rule, counts by hand, what hangs together in intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation import normalisers
from omnidiff_jax.evaluation.choices import Letters, lettered, open_right
from omnidiff_jax.evaluation.intervals import Ratios, bootstrap, paired, unpaired
from omnidiff_jax.evaluation.normalisers import Normaliser
from omnidiff_jax.evaluation.transcripts import Edits, edits, read_trn, total, trn, word_edits
from omnidiff_jax.evaluation.yes_no import YesNo, both_right, detections, mme_task
from omnidiff_jax.words import edit_distance

WORDS = st.lists(st.sampled_from(("red", "green", "blue")), max_size=6)


def normaliser(word):
    return Normaliser.named(word)()


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("plain", "It's  RED, on-white.", "it's red on white"),
        ("plain", "don’t cafe\u0301", "don't café"),
        ("released", "Hello, world!", "HELLO, WORLD!"),
        ("released", "word ,word ?no", "WORD WORD NO"),
        ("released", "don't mr. x", "DON'T MR. X"),
        ("released", "你好 hi你", "你 好 HI 你"),
        ("released", "<unk><noise>yes <b>no", "YES NO"),
        ("released", "a <open b", "A B"),
        ("released", "café au", "CAF É AU"),
        ("released", "a\u00a0b\tc", "A B C"),
        ("released", "。", ""),
    ],
)
def test_words_by_rule(rule, text, expected):
    assert normaliser(rule).words(text) == expected.split()


def test_an_unknown_rule_is_told_the_nearest():
    with pytest.raises(UserError, match="did you mean 'whisper'"):
        Normaliser.named("wisper", "normaliser")


def test_whispers_words():
    pytest.importorskip("whisper_normalizer")
    rule = normaliser("whisper")
    assert rule.words("Um, it’s twenty-one colours [noise]") == rule.words("it's 21 colors")
    assert rule.words("cafe\u0301") == rule.words("café")


def test_speech_is_spelled_out_before_it_is_compared(monkeypatch):
    monkeypatch.setattr(normalisers, "_spelled_out", lambda: lambda text: text.replace("2", "two"))
    rule = normaliser("released_speech")
    assert rule.words("Don't, 2!") == ["DON", "T", "TWO"] and rule.written("Don't, 2!") == "Don t two "
    assert normaliser("released").written("Don't, 2!") == "Don't, 2!"


@given(WORDS, WORDS)
def test_edits_add_up(reference, hypothesis):
    found = edits(reference, hypothesis)
    assert found.errors == edit_distance(reference, hypothesis)
    kept = found.words - found.substitutions - found.deletions
    assert kept + found.substitutions + found.insertions == len(hypothesis)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a x c", Edits(1, 0, 0, 3)),
        ("a b c", "a c", Edits(0, 1, 0, 3)),
        ("a", "b a c", Edits(0, 0, 2, 1)),
        ("", "a b", Edits(0, 0, 2, 0)),
        ("a b", "", Edits(0, 2, 0, 2)),
        ("a b", "b a", Edits(0, 1, 1, 2)),  # as few edits as two substitutions; compute-wer counts these
    ],
)
def test_edits_by_kind(reference, hypothesis, expected):
    assert edits(reference.split(), hypothesis.split()) == expected


def test_corpus_errors_are_of_all_words():
    found = word_edits(["a b c", "d", ""], ["a x c", "", "e"], normaliser("plain"))
    assert [one.rate for one in found] == [pytest.approx(1 / 3), 1.0, float("inf")]
    assert total(found) == Edits(1, 1, 1, 4) and total(found).rate == 0.75
    with pytest.raises(ValueError, match="1 references"):
        word_edits(["a"], [], normaliser("plain"))


def test_trn_files():
    content = trn(["a b\nc", ""], ["spk-1", "spk-2"])
    assert content == "a b c (spk-1)\n (spk-2)\n"
    assert read_trn(content) == {"spk-1": "a b c", "spk-2": ""}
    for names, fault in ((["x", "x"], "twice"), (["a b", "c"], "no spaces")):
        with pytest.raises(UserError, match=fault):
            trn(["", ""], names)
    with pytest.raises(UserError, match="line 2"):
        read_trn("a (b)\nc\n")


@pytest.mark.parametrize(
    ("answer", "mme", "pope", "vlmevalkit"),
    [
        ("yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no"),
        ("Yes, there is.", "yes", "yes", "yes"),
        ("none", "no", "yes", ""),
        ("it is yes", "", "yes", "yes"),
        ("I do not know", "", "no", ""),
        ("It is. No.", "", "yes", "no"),
        ("NO", "no", "yes", "no"),
        ("yes or no", "yes", "no", ""),
        ("", "", "yes", ""),
        ("no,", "no", "no", "no"),
        ("\nno", "no", "yes", "no"),
        ("note", "no", "yes", ""),
    ],
)
def test_yes_and_no_by_rule(answer, mme, pope, vlmevalkit):
    found = tuple(YesNo.named(word)().read(answer) for word in ("mme", "pope", "vlmevalkit"))
    assert found == (mme, pope, vlmevalkit)


def test_what_was_heard_begins_with_its_first_letter():
    assert YesNo.named("mme_spoken")().read(" ... Yes, it is") == "yes"
    assert YesNo.named("mme")().read(" ... Yes, it is") == ""


def test_detections_by_hand():
    said, truths = ["yes", "yes", "no", "", "no"], ["yes", "no", "yes", "no", "no"]
    found = {name: ratios.value for name, ratios in detections(said, truths).items()}
    assert found == {"accuracy": 0.4, "precision": 0.5, "recall": 0.5, "F1": 0.5, "yes ratio": 0.4}
    never = {name: ratios.value for name, ratios in detections(["no"], ["no"]).items()}
    assert (never["precision"], never["F1"], never["accuracy"]) == (0.0, 0.0, 1.0)


def test_mme_by_hand():
    right = [True, True, True, False, True, True]
    pictures = ["a", "a", "b", "b", "c", "c"]
    assert both_right(right, pictures).value == pytest.approx(2 / 3)
    everything = [True] * 6
    assert mme_task(right, pictures, everything).value == pytest.approx(100 * (5 / 6 + 2 / 3))
    assert mme_task(right, pictures, [False, False, True, True, False, False]).value == pytest.approx(50)
    constant = [True, False] * 3  # always "yes": half of the questions, no picture
    assert mme_task(constant, pictures, everything).value == pytest.approx(50)


OPTIONS = {"A": "a red dog", "B": "blue", "C": "green", "D": "none"}


@pytest.mark.parametrize(
    ("answer", "vlmevalkit", "mmmu"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("(C)", "C", "C"),
        ("The answer is D", "D", "D"),
        ("blue", "B", ""),
        ("A or B", "", "B"),
        ("(A) or (B)", "", "B"),
        ("The answer is A, not B", "A", "B"),
        ("Cannot determine the answer", "", ""),
        ("", "", ""),
        ("I am sure that it is green", "C", "C"),
        ("It looks blue but it is green", "", "C"),
        ("E", "", ""),
        ("b", "", ""),
    ],
)
def test_letters_by_rule(answer, vlmevalkit, mmmu):
    assert Letters.named("vlmevalkit")().read(answer, OPTIONS) == vlmevalkit
    assert Letters.named("mmmu")().read(answer, OPTIONS) == mmmu


def test_options_by_letter():
    assert lettered(["x", "y"]) == {"A": "x", "B": "y"}


@pytest.mark.parametrize(
    ("answer", "truths", "right"),
    [
        ("The answer is 3.14159", ["3.14"], True),
        ("1,000", ["1000"], True),
        ("x = 5", ["5"], True),
        ("so it is 7\nbut the answer is 8", ["8"], True),
        ("It is Paris.", ["paris"], True),
        ("14", ["4"], False),
        ("the letter b here", ["b"], True),
        ("abc", ["b"], False),
        ("no idea", ["5", "six"], False),
        ("six", ["5", "six"], True),
    ],
)
def test_open_answers(answer, truths, right):
    assert open_right(answer, truths) is right


def test_numbers_over_cases():
    share = Ratios.of([1, 0, 1, 1])
    assert share.value == 0.75 and share.where([True, True, False, False]).value == 0.5
    assert Ratios.joined([share, Ratios.of([1, 1, 0, 0], [2, 2, 0, 0])]).value == pytest.approx(0.625)
    assert Ratios.of([1.0], [0.0]).value == 0.0
    with pytest.raises(ValueError, match="must be"):
        Ratios(np.zeros((2, 1)), np.zeros((2, 2)), np.ones(1))


def test_intervals_are_as_wide_as_theory_says():
    hits = np.random.default_rng(1).random(400) < 0.3
    low, high = bootstrap(Ratios.of(hits), samples=4000)
    spread = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert low == pytest.approx(hits.mean() - spread, abs=0.006) and high == pytest.approx(
        hits.mean() + spread, abs=0.006
    )
    assert bootstrap(Ratios.of(hits), samples=50) == bootstrap(Ratios.of(hits), samples=50)
    assert bootstrap(Ratios.of([])) == (0.0, 0.0)


def test_what_hangs_together_is_drawn_together():
    pairs = np.repeat(np.random.default_rng(2).random(100) < 0.5, 4)
    alone, together = (
        np.subtract(*bootstrap(Ratios.of(pairs), clusters)) for clusters in (None, np.repeat(range(100), 4).tolist())
    )
    assert together / alone == pytest.approx(2, rel=0.15)  # a quarter as many cases


def test_pairs_take_out_what_both_find_hard():
    rng = np.random.default_rng(3)
    hard = rng.random(300) < 0.5
    one, other = Ratios.of(~hard | (rng.random(300) < 0.1)), Ratios.of(~hard)
    close, wide = paired(one, other), unpaired(one, other)
    assert close.value == wide.value > 0 and close.interval[0] > 0 > wide.interval[0]
    assert close.probability < 0.01 < wide.probability
    assert paired(one, one).probability == 1.0
    with pytest.raises(ValueError, match="same ones"):
        paired(one, Ratios.of([1.0]))
