"""One mesh over several processes: what each computes of a batch, and that no answer depends on how many there are."""

import json
import os
import sys

import jax
import numpy as np
import pytest
from benchmark_toys import mme
from jax.sharding import AxisType
from sampling_toys import VOCABULARY, make_toy, toy_denoiser

from experiments.launch import local
from omnidiff_jax.sampling import Prompt, SamplerConfig, blank, build_canvas, known, sample
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


@pytest.mark.slow
@pytest.mark.multihost
def test_scores_do_not_depend_on_the_number_of_processes(tmp_path):
    data = mme(tmp_path / "data", "table", {"existence": 4, "OCR": 2})
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    cards = []
    for processes in (1, 2):
        out = tmp_path / f"of {processes}"
        words = ["--model=nano", "--exam=mme", f"--data={data}", f"--out={out}", "--rows=3", "--decoding=own"]
        with open(tmp_path / "log", "w") as log:
            started = local.start([sys.executable, "-m", "experiments.evaluate", *words], processes, env, log)
            assert local.wait(started) == 0, (tmp_path / "log").read_text()[-3000:]
        place = out / "benchmarks" / "mme-released"
        answers = [json.loads(line) for line in (place / "answers.0-of-1.jsonl").read_text().splitlines()]
        cards.append((json.loads((place / "score.json").read_text()) | {"seconds": 0}, len(answers)))
        assert {answer["text"] for answer in answers} != {""}
    assert cards[0] == cards[1] and cards[0][1] == 6
