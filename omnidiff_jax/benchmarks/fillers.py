"""Ways to fill the same answers: our sampler, and the released algorithm in plain JAX and, as a process, in PyTorch."""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict

from omnidiff_jax.benchmarks import released_style
from omnidiff_jax.benchmarks.settings import Setting
from omnidiff_jax.benchmarks.train import planned_bytes
from omnidiff_jax.benchmarks.versus import Side
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.sampling import Canvas, Denoiser, SamplerConfig, module_denoiser, sample
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.loop import trace_sampler
from omnidiff_jax.vocabulary import Vocabulary

TORCH_SAMPLER = Path(__file__).with_name("torch_sampler.py")
# Deviation of the random model's logits. Guidance multiplies it, and near certainty entropies differ by rounding only.
SHARPNESS = 2.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What all variants do.

    Attributes:
        setting: prompts, answers, filters, penalties, guidance.
        steps: T.
        backbone: the model's sizes.
        params: of it, in the compute dtype.
        vocabulary: of the model.
        torch_python: an interpreter that has torch.
    """

    setting: Setting
    steps: int
    backbone: BackboneConfig
    params: Any
    vocabulary: Vocabulary
    torch_python: str = ""


@dataclasses.dataclass(frozen=True)
class Filled:
    """One call.

    Attributes:
        seconds: from the canvas to the tokens.
        tokens: int [rows, answer].
        committed: positions that each step chose, over all rows.
        steps: of the row with the most.
    """

    seconds: float
    tokens: np.ndarray
    committed: np.ndarray
    steps: int


class Filler(Protocol):
    """A way to do the work; the first call compiles."""

    def fill(self, seed: int) -> Filled:
        """Answers the prompts of `seed`."""

    def peak_bytes(self) -> int:
        """Memory that a call holds at most, weights included; asked once, after the last call."""

    def close(self) -> None: ...


Opener = Callable[[Work, int], Filler]
"""(work, rows: canvases at once) -> filler."""


def random_params(backbone: BackboneConfig) -> Any:
    """Parameters in the compute dtype under which answers depend on where they stand and what stands beside them.

    With the initialisation of training all masks look nearly alike, and rounding decides which is revealed first.
    """
    unit = backbone.width**-0.5
    loud = dataclasses.replace(backbone, init_stddev=unit, residual_stddev=unit, embed_stddev=1.0)

    def make(key: jax.Array) -> Any:
        params = meta.unbox(init_params(model_config(loud), key))
        params["backbone"]["head"] *= SHARPNESS
        return jax.tree.map(lambda x: x.astype(backbone.dtype), params)

    return jax.block_until_ready(jax.jit(make)(jax.random.key(0)))


def model_config(backbone: BackboneConfig) -> OmniConfig:
    return OmniConfig(backbone, speech_encoder=None)


def make_denoiser(work: Work, scan_layers: bool) -> Denoiser:
    backbone = dataclasses.replace(work.backbone, remat="none", scan_layers=scan_layers)
    return module_denoiser(OmniModel(model_config(backbone)), work.params)


class Loop:
    """The sampler.

    Args:
        work: what is done.
        rows: canvases at once.
        change: makes another sampler of the setting's.
        scan_layers: roll the layer loop.
    """

    def __init__(
        self,
        work: Work,
        rows: int,
        change: Callable[[SamplerConfig], SamplerConfig] = lambda sampler: sampler,
        scan_layers: bool = False,
    ):
        self._work, self._rows = work, rows
        self._sampler = change(work.setting.sampler(work.steps))
        self._denoiser = make_denoiser(work, scan_layers)

    def fill(self, seed: int) -> Filled:
        canvas, other = self._canvases(seed)
        began = time.perf_counter()
        result = jax.block_until_ready(sample(self._denoiser, canvas, self._sampler, 0, other))
        seconds = time.perf_counter() - began
        start = self._work.setting.prompt
        tokens = np.asarray(result.tokens)[:, start : start + self._work.setting.answer]
        committed = np.asarray(result.committed).sum(axis=0)
        return Filled(seconds, tokens, committed[committed > 0], int(np.asarray(result.steps).max()))

    def peak_bytes(self) -> int:
        """By the compiler's plan of the compiled loop."""
        canvas, other = self._canvases(0)
        if other is not None:
            canvas = stack_canvases(canvas, other)
        answer = self._work.setting.answer
        traced = trace_sampler(self._denoiser, canvas, self._sampler, rows=self._rows, answer=answer)
        return planned_bytes(traced.lower().compile())

    def close(self) -> None:
        pass

    def _canvases(self, seed: int) -> tuple[Canvas, Canvas | None]:
        return self._work.setting.canvases(self._work.vocabulary, seed, self._rows)


class Plain:
    """The released algorithm in plain JAX, one canvas at a time. Arguments as for `Loop`."""

    def __init__(self, work: Work, rows: int):
        if rows != 1:
            raise ValueError(f"rows = {rows}: the released algorithm takes one canvas")
        self._work, self._denoiser = work, make_denoiser(work, scan_layers=False)

    def fill(self, seed: int) -> Filled:
        work, canvas = self._work, self._canvas(seed)
        began = time.perf_counter()
        tokens, committed = released_style.fill(self._denoiser, canvas, work.setting, work.steps)
        seconds = time.perf_counter() - began
        start = work.setting.prompt
        answer = tokens[None, start : start + work.setting.answer]
        return Filled(seconds, answer, np.array(committed), len(committed))

    def peak_bytes(self) -> int:
        """By the compiler's plan of one step."""
        canvas, work = self._canvas(0), self._work
        context = released_style.prepare(self._denoiser, canvas)
        tokens = np.asarray(canvas.inputs.tokens)
        lowered = released_style.step.lower(
            self._denoiser, context, tokens, np.asarray(canvas.generate)[0], tokens[0],
            setting=work.setting, mask_id=canvas.mask_id,
        )  # fmt: skip
        return planned_bytes(lowered.compile())

    def close(self) -> None:
        pass

    def _canvas(self, seed: int) -> Canvas:
        canvas, other = self._work.setting.canvases(self._work.vocabulary, seed, 1)
        return canvas if other is None else stack_canvases(canvas, other)


class Torch:
    """The released algorithm in plain PyTorch, in a process of its own with a copy of the weights.

    Arguments as for `Loop`; its memory is the process's largest, or what torch allocated on the GPU.
    """

    def __init__(self, work: Work, rows: int):
        if rows != 1:
            raise ValueError(f"rows = {rows}: the released algorithm takes one canvas")
        self._work = work
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden", "rope_theta")
        spec = {name: getattr(work.backbone, name) for name in sizes} | dataclasses.asdict(work.setting)
        spec |= {"steps": min(work.steps, work.setting.answer), "mask": work.vocabulary.mask}
        spec |= {"device": torch_device(), "threads": len(os.sched_getaffinity(0))}
        with tempfile.TemporaryDirectory() as folder:
            for path, array in flatten_dict(work.params["backbone"], sep=".").items():
                np.save(Path(folder) / f"{path}.npy", np.asarray(array))
            command = [work.torch_python, str(TORCH_SAMPLER), json.dumps(spec | {"weights": folder})]
            self._side = Side("released", command)  # it has read the folder when it is ready

    def fill(self, seed: int) -> Filled:
        prompts, others = self._work.setting.prompts(self._work.vocabulary, seed, 1)
        other = others[0].tokens.tolist() if others else None
        answer = self._side.step(json.dumps({"prompt": prompts[0].tokens.tolist(), "unconditional": other}))
        committed = np.array(answer["committed"])
        return Filled(answer["seconds"], np.array([answer["tokens"]]), committed, len(committed))

    def peak_bytes(self) -> int:
        return self._side.finish()["peak_bytes"]

    def close(self) -> None:
        self._side.kill()


def torch_device() -> str:
    """Where torch is to run: beside jax."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def why_no_torch(python: str) -> str | None:
    """Why an interpreter cannot run `Torch`, in a line; None where it can."""
    check = "import torch, numpy; torch.zeros(1, device=__import__('sys').argv[1])"
    try:
        done = subprocess.run([python, "-c", check, torch_device()], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it fails"])[-1]
