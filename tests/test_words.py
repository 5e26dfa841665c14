"""Words compared: what looks alike is alike, what differs in a sign differs, plain ASCII counts as it always did."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidiff_jax.words import clean, edit_distance, is_blank, normalize, word_error_rate, word_errors

WORDS = st.lists(st.sampled_from(("red", "green", "blue")), max_size=6)
INVISIBLE = ("\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u200e", "\ufe0f")
LETTERS = st.text(st.characters(categories=("L", "N", "M", "Zs", "P")), max_size=20)


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_word_error_rate_by_hand():
    assert normalize("It's  RED, on-white.") == "it's red on white"
    assert edit_distance("small red circle".split(), "red big circle left".split()) == 3
    assert word_error_rate(["a b c", "d"], ["a x c", ""]) == pytest.approx(2 / 4)
    errors, words = word_errors(["a b", "c"], ["a b", "c d e"])
    assert errors.tolist() == [0, 2]
    assert words.tolist() == [2, 1]
    with pytest.raises(ValueError, match="1 references but 2"):
        word_errors(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="without words"):
        word_error_rate(["..."], ["a"])


@given(st.text(st.characters(codec="ascii")))
def test_plain_ascii_is_normalised_as_ever(text):
    assert normalize(text) == " ".join(re.sub(r"[^\w\s']|_", " ", text.lower()).split())


@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalize(normalize(text)) == normalize(text)


@given(LETTERS)
def test_composed_and_decomposed_letters_are_the_same(text):
    forms = {normalize(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {normalize(text)}


@given(st.lists(st.text("abcé'd", min_size=1, max_size=8)), st.sampled_from(INVISIBLE), st.integers(0, 20))
def test_what_cannot_be_seen_costs_nothing(words, sign, place):
    text = " ".join(words)
    assert normalize(text[:place] + sign + text[place:]) == normalize(text)


@given(st.text("abc 'de"), st.sampled_from("’ʼ＇´"))
def test_every_apostrophe_is_one(text, apostrophe):
    assert normalize(text.replace("'", apostrophe)) == normalize(text)


@given(st.text(st.characters(codec="ascii", categories=("L", "Nd"))))
def test_full_width_is_plain(text):
    assert normalize("".join(chr(ord(character) + 0xFEE0) for character in text)) == normalize(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("don’t", "don't"),
        ("‘don’t’ he said", "don't he said"),
        ("“red” — circle…", "red circle"),
        ("ﬁne oﬀer", "fine offer"),
        ("STRASSE", "straße"),
        ("ΟΔΟΣ", "οδος"),
        ("Acme™ ©2024", "acme 2024"),
        ("a ≠ b", "a b"),
        ("1\ufe0f\u20e3", "1"),
    ],
)
def test_spellings_of_the_same(text, same):
    assert normalize(text) == normalize(same) and word_error_rate([same], [text]) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [("ก่า", "ก้า"), ("กิน", "กัน"), ("हिन्दी", "हन्दी"), ("café", "cafe"), ("שָׁלוֹם", "שלום"), ("dont", "don’t")],
)
def test_words_that_differ_in_a_sign_differ(one, other):
    assert word_error_rate([one], [other]) == 1 and len(normalize(one).split()) == 1


@given(st.text(st.sampled_from((*INVISIBLE, *" \n\t\r\0\u3000\u00a0\u3164\u2800"))), st.text("a.…ก", min_size=1))
def test_blank_is_what_cannot_be_seen(nothing, something):
    assert is_blank(nothing) and not is_blank(nothing + something + nothing)


@given(st.text())
def test_requests_have_one_spelling(text):
    cleaned = clean(text)
    assert "\r" not in cleaned and clean(cleaned) == cleaned
    assert clean(unicodedata.normalize("NFD", text)) == clean(unicodedata.normalize("NFC", text)) == cleaned
    assert clean(text.replace("\n", "\r\n")) == clean(text.replace("\n", "\r")) == clean(cleaned)
