"""The likelihood bound of the sampler's toy against every way to mask, and of a model without context, exactly."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import omni_toys
import pytest
from sampling_toys import VOCABULARY, make_toy, toy_denoiser, toy_logits
from scipy.special import log_softmax

from omnidiff_jax.sampling import Prompt, blank, build_canvas, known
from omnidiff_jax.sampling.likelihood import likelihood_bound
from omnidiff_jax.tasks.registry import task

TOY, MASK = make_toy(5), VOCABULARY.mask
PROMPT = np.array([1, 2], np.int32)


def canvas_of(answers, ids):
    blanks = [blank(len(answer), MASK) + known([3]) for answer in answers]
    return build_canvas([Prompt(PROMPT)] * len(answers), blanks, VOCABULARY, example_ids=ids, multiple=8)


def filled(canvas, answers):
    tokens = np.array(canvas.inputs.tokens)
    for row, answer in zip(tokens, answers, strict=True):
        row[len(PROMPT) : len(PROMPT) + len(answer)] = answer
    return tokens


def enumerated(answer):
    """The bound over every level and every subset."""
    n, losses = len(answer), []
    whole = np.concatenate([PROMPT, answer, [3]])
    for level in range(1, n + 1):
        found = []
        for chosen in itertools.combinations(range(n), level):
            places = np.array(chosen) + len(PROMPT)
            seen = whole.copy()
            seen[places] = MASK
            scores = log_softmax(toy_logits(TOY, seen), axis=1)
            found.append(-scores[places - 1, whole[places]].sum() * n / level)
        losses.append(np.mean(found))
    return np.mean(losses)


def test_the_estimate_is_of_the_bound():
    answers = [np.array([1, 4, 2]), np.array([5])]
    canvas = canvas_of(answers, [7, 8])
    bounds = likelihood_bound(toy_denoiser(TOY), canvas, filled(canvas, answers), draws=3000)
    assert bounds[1] == pytest.approx(enumerated(answers[1]), rel=1e-4)  # one position: no chance in it
    assert bounds[0] == pytest.approx(enumerated(answers[0]), rel=0.02)


def test_without_context_the_bound_is_the_likelihood_at_every_level():
    plain = TOY._replace(left=TOY.left * 0, right=TOY.right * 0, everywhere=TOY.everywhere * 0)
    denoiser = dataclasses.replace(toy_denoiser(plain._replace(token=plain.token * 0)))
    answers = [np.array([1, 4, 2, 2, 5])]
    canvas = canvas_of(answers, [1])
    logits = np.tanh(plain.position[: len(PROMPT) + 5]) @ plain.head
    scores = log_softmax(logits, axis=1)[np.arange(1, 6), answers[0]]
    many = likelihood_bound(denoiser, canvas, filled(canvas, answers), draws=4000)
    assert many[0] == pytest.approx(-scores.sum(), rel=0.02)


def test_an_answers_bound_does_not_depend_on_its_batch():
    answers = [np.array([1, 4, 2]), np.array([5, 2]), np.array([3, 3, 3, 1])]
    canvas = canvas_of(answers, [7, 8, 9])
    together = likelihood_bound(toy_denoiser(TOY), canvas, filled(canvas, answers), draws=4)
    alone = []
    for answer, number in zip(answers, (7, 8, 9), strict=True):
        one = canvas_of([answer], [number])
        alone.append(likelihood_bound(toy_denoiser(TOY), one, filled(one, [answer]), draws=4)[0])
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_no_draws_and_nothing_to_score():
    canvas = build_canvas([Prompt(PROMPT)], [known([3])], VOCABULARY, multiple=8)
    tokens = np.array(canvas.inputs.tokens)
    assert likelihood_bound(toy_denoiser(TOY), canvas, tokens, draws=1).tolist() == [0.0]
    with pytest.raises(ValueError, match="at least 1"):
        likelihood_bound(toy_denoiser(TOY), canvas, jnp.asarray(tokens), draws=0)


def test_a_generator_bounds_the_answers_it_is_given():
    model, vqa = omni_toys.generator(), task("vqa")
    requests = [omni_toys.request(vqa, number) for number in range(2)]
    options = [["yes", "no"], ["a", "b", "no"]]
    found = model.bounds(vqa, requests, options, draws=3)
    assert [bounds.shape for bounds in found] == [(2, 2), (3, 2)]
    assert found[0][:, 1].tolist() == [4, 3] and (found[0][:, 0] > 0).all()  # letters, and the end
    again = model.bounds(vqa, requests[1:], options[1:], draws=3)
    np.testing.assert_allclose(again[0], found[1], rtol=1e-4)
