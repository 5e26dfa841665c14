"""One mesh over several processes: what each computes of a batch, and that no answer depends on how many there are."""

import json
import os
import sys

import jax
import numpy as np
import pytest
from benchmark_toys import mme, seed, tone, write
from jax.sharding import AxisType
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from experiments.launch import local
from omnidiff_jax.media.audio import write_wav
from omnidiff_jax.sampling import Prompt, SamplerConfig, blank, build_canvas, known, sample
from omnidiff_jax.sampling.likelihood import likelihood_bound
from omnidiff_jax.sharding.mesh import MeshConfig, make_mesh
from omnidiff_jax.sharding.spread import Spread, spread_over


def spread(parts):
    return Spread(make_mesh(MeshConfig(data=1, fsdp=parts), jax.devices()[:parts]), "fsdp")


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 8, 64])
def test_every_device_has_an_equal_part_of_the_rows(parts, rows):
    there = spread(parts)
    even = there.even(rows)
    assert rows <= even < rows + parts and even % parts == 0
    whole = np.arange(even * 3).reshape(even, 3)
    laid = there.laid({"tokens": whole, "count": np.int32(7)})
    pieces = [np.asarray(piece.data) for piece in laid["tokens"].addressable_shards]
    assert [len(piece) for piece in pieces] == [even // parts] * parts
    assert sorted(np.concatenate(pieces)[:, 0]) == list(whole[:, 0]) and laid["count"] == 7
    np.testing.assert_array_equal(there.gathered(laid)["tokens"], whole)


def test_one_process_needs_no_help():
    assert spread_over(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), "fsdp") is None


@pytest.mark.slow
def test_answers_do_not_depend_on_the_mesh():
    denoiser = toy_denoiser(make_toy(5))
    prompts = [Prompt(np.array([1, 2 + i % 3], np.int32)) for i in range(8)]
    answers = [blank(3 + i % 4, VOCABULARY.mask) + known([3]) for i in range(8)]
    canvas = build_canvas(prompts, answers, VOCABULARY, example_ids=range(8), multiple=8)
    alone = sample(denoiser, canvas, SamplerConfig(), 3)
    for parts in (2, 8):
        found = sample(denoiser, canvas, SamplerConfig(), 3, spread=spread(parts))
        np.testing.assert_array_equal(found.tokens, alone.tokens)
        np.testing.assert_array_equal(found.commit_step, alone.commit_step)


def test_bounds_do_not_depend_on_the_mesh():
    denoiser = toy_denoiser(make_toy(5))
    said = [np.array([1, 4, 2, 5])[: 1 + i % 4] for i in range(8)]
    blanks = [blank(len(ids), VOCABULARY.mask) + known([3]) for ids in said]
    prompts = [Prompt(np.array([1, 2 + i % 3], np.int32)) for i in range(8)]
    canvas = build_canvas(prompts, blanks, VOCABULARY, example_ids=range(8), multiple=8)
    tokens = np.array(canvas.inputs.tokens)
    for row, ids in zip(tokens, said, strict=True):
        row[2 : 2 + len(ids)] = ids
    alone = likelihood_bound(denoiser, canvas, tokens, draws=3)
    found = likelihood_bound(denoiser, canvas, tokens, draws=3, spread=spread(8))
    assert len(set(found.tolist())) == 8 and (found > 0).all()
    np.testing.assert_allclose(found, alone, rtol=1e-4)


def spoken(place):
    """Recordings of nobody beside sentences that nano can say."""
    for number, words in enumerate(("a red square", "it is four", "a blue circle")):
        folder = place / "test-clean" / "7" / "7"
        write(folder / f"7_7_0_{number}.normalized.txt", words)
        write_wav(folder / f"7_7_0_{number}.wav", tone(5.0 + number))
    return place


EXAMS = {
    "mme": ("released", lambda place: mme(place, "table", {"existence": 4, "OCR": 2})),
    "seed2plus": ("likelihood", lambda place: seed(place, "lines")),
    "libritts": ("lmms_eval", spoken),
}


@pytest.mark.slow
@pytest.mark.multihost
@pytest.mark.parametrize("exam", EXAMS)
def test_scores_do_not_depend_on_the_number_of_processes(exam, tmp_path):
    """Answers in text, options ranked by likelihood, and speech that a judge hears."""
    if exam == "libritts":
        pytest.importorskip("pocketsphinx", reason="the judge is in the extra `eval`")
        pytest.importorskip("whisper_normalizer", reason="the normaliser is in the extra `benchmarks`")
    protocol, written = EXAMS[exam]
    data = written(tmp_path / "data")
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    cards = []
    for processes in (1, 2):
        out = tmp_path / f"of {processes}"
        words = ["--model=nano", f"--exam={exam}", f"--protocol={protocol}", f"--data={data}", f"--out={out}"]
        words += ["--rows=3", "--decoding=own", "--judge=pocketsphinx"]
        with open(tmp_path / "log", "w") as log:
            started = local.start([sys.executable, "-m", "experiments.evaluate", *words], processes, env, log)
            assert local.wait(started) == 0, (tmp_path / "log").read_text()[-3000:]
        place = out / "benchmarks" / f"{exam}-{protocol}"
        answers = [json.loads(line) for line in (place / "answers.0-of-1.jsonl").read_text().splitlines()]
        score = json.loads((place / "score.json").read_text())
        cards.append((score | {"seconds": 0}, [answer.get("text") for answer in answers]))
        assert len(answers) == score["of"] and not score["skipped"]
        assert {"mme": "text", "seed2plus": "bounds", "libritts": "speech"}[exam] in answers[0]
        heard = sorted(path.name for path in place.glob("heard-*"))
        assert len(heard) == (processes if exam == "libritts" else 0)  # what is judged is shared out
    assert cards[0] == cards[1]
