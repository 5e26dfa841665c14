"""Names by their stated rules: what is the same, and what must stay apart."""

import pytest

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.evaluation.exam import Case
from omnidiff_jax.evaluation.names import NAMED, names_it, spelt

SAME = (
    ("a Hot-Air Balloon.", "hot air balloon"),
    ("the hotdog", "hot dog"),
    ("T_SHIRT", "t-shirt"),
    ("grapes", "grape"),
    ("Cherries", "a cherry"),
    ("boxes", "box"),
    ("peaches", "peach"),
    ("pairs of shoes", "pair of shoe"),
    ("café", "cafe\u0301"),
)
APART = (("bus", "bu"), ("grass", "gras"), ("cactus", "cactu"), ("cat", "car"), ("dog", "hot dog"), ("gas", "ga"))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_name(one, other):
    assert spelt(one) == spelt(other) != ""


@pytest.mark.parametrize(("one", "other"), APART)
def test_other_names(one, other):
    assert spelt(one) != spelt(other)


def test_synonyms_count_and_nothing_does_not():
    names = ("automobile", "car")
    assert names_it("A car", names) and names_it("automobiles", names)
    assert not names_it("", names) and not names_it("?", ("!",)) and not names_it("a red car", names)
    cases = [Case(Request(), Response(), {"accepted": names})] * 4
    top, bottom = NAMED.score([Response(text=text) for text in ("the cars", "cart", "", "a car.")], cases)
    assert top.tolist() == [1, 0, 0, 1] and bottom.tolist() == [1, 1, 1, 1]
