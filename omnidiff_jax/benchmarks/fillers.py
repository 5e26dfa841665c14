"""Ways to fill the same answers: our sampler, and the released algorithm in plain JAX and, as a process, in PyTorch."""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict

from omnidiff_jax.benchmarks import released_style
from omnidiff_jax.benchmarks.settings import Setting, kinds_of
from omnidiff_jax.benchmarks.train import planned_bytes
from omnidiff_jax.benchmarks.versus import Side
from omnidiff_jax.models.backbone import BackboneConfig, layers_apart
from omnidiff_jax.models.flops import forward_flops, matrix_parameters
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.quantized import QUANTIZATIONS, quantize_params
from omnidiff_jax.sampling import Canvas, Denoiser, SamplerConfig, module_denoiser, sample
from omnidiff_jax.sampling.guidance import stack_canvases
from omnidiff_jax.sampling.loop import trace_sampler
from omnidiff_jax.sampling.results import SampleResult
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
        released_steps: `released` takes so many evenly spaced steps, each on the canvas that `exact` had there; 0 = all
            of its own.
        requests: of the stream that the engine serves.
    """

    setting: Setting
    steps: int
    backbone: BackboneConfig
    params: Any
    vocabulary: Vocabulary
    torch_python: str = ""
    released_steps: int = 0
    requests: int = 200


@dataclasses.dataclass(frozen=True)
class Need:
    """What a call cannot do without.

    Attributes:
        operations: float [steps], of each step.
        read: bytes that each step reads, the weights.
    """

    operations: np.ndarray
    read: float

    def seconds(self, ceiling: float, bandwidth: float) -> float:
        """At a device's FLOP/s and bytes/s; in each step the slower of the two counts."""
        return float(np.maximum(self.operations / ceiling, self.read / bandwidth).sum())


@dataclasses.dataclass(frozen=True)
class Filled:
    """One call.

    Attributes:
        seconds: from the canvas to the tokens; of a call that took some of its steps, what all would take.
        tokens: int [rows, answer].
        steps: of the row with the most.
        need: of the call.
        when: int [rows, answer], step that chose each position; None where that is not known.
        taken: steps that were measured; 0 = all.
        details: more that was measured.
        alone: whether each answer is the one given alone, where that was tried.
    """

    seconds: float
    tokens: np.ndarray
    steps: int
    need: Need
    when: np.ndarray | None = None
    taken: int = 0
    details: Mapping[str, float] | None = None
    alone: bool | None = None


class Filler(Protocol):
    """A way to do the work.

    Attributes:
        follows: name of the variant that must have filled the same canvases before; "" = none.
    """

    follows: str

    def warm(self) -> float:
        """Compiles whatever `fill` runs; the seconds of it."""

    def fill(self, seed: int, past: Mapping[str, Filled]) -> Filled:
        """Answers the prompts of `seed`; `past` is what other variants filled them with."""

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


def make_denoiser(work: Work, scan_layers: bool = False, quantize: str = "") -> Denoiser:
    backbone = dataclasses.replace(work.backbone, remat="none", scan_layers=scan_layers)
    params = quantize_params(work.params, quantize) if quantize else work.params
    return module_denoiser(OmniModel(model_config(backbone)), layers_apart(params, backbone))


def need_of(work: Work, rows: int, committed: np.ndarray, columns: int = 0, dtype: Any = None) -> Need:
    """What the layers at every position and the head on the masked rows need.

    Args:
        work: what is done.
        rows: canvases at once.
        committed: positions that each step chose, over all rows.
        columns: ids whose logits are computed; 0 = all.
        dtype: of the weights, where it is not that of the model.
    """
    backbone, setting = work.backbone, work.setting
    passes, length = 2 if setting.guidance > 0 else 1, setting.prompt + setting.answer
    columns = columns or backbone.vocab_size
    masked = passes * (rows * setting.answer - np.concatenate([[0], np.cumsum(committed)[:-1]]))
    layers = rows * passes * length * layer_operations(backbone, length)
    return Need(layers + masked * head_operations(backbone, columns), weight_bytes(backbone, columns, dtype))


def layer_operations(backbone: BackboneConfig, length: int) -> float:
    """Of a position in a row of `length`, without the head."""
    return forward_flops(backbone, 1, length) - head_operations(backbone, backbone.vocab_size)


def head_operations(backbone: BackboneConfig, columns: int) -> float:
    """Of a row of logits of `columns` ids."""
    return 2.0 * backbone.width * columns


def weight_bytes(backbone: BackboneConfig, columns: int, dtype: Any = None) -> float:
    """Of the matrices that a step reads."""
    left_out = backbone.width * (backbone.vocab_size - columns)
    return float(matrix_parameters(backbone) - left_out) * jnp.dtype(dtype or backbone.dtype).itemsize


class Loop:
    """The sampler.

    Args:
        work: what is done.
        rows: canvases at once.
        change: makes another sampler of the setting's.
        scan_layers: roll the layer loop.
        restricted: only tokens of the setting's kind may stand in the answers.
        quantize: a word of `models.quantized`; "" = none.
    """

    follows = ""

    def __init__(
        self,
        work: Work,
        rows: int,
        change: Callable[[SamplerConfig], SamplerConfig] = lambda sampler: sampler,
        scan_layers: bool = False,
        restricted: bool = False,
        quantize: str = "",
    ):
        self._work, self._rows = work, rows
        self._sampler = change(work.setting.sampler(work.steps))
        self._denoiser = make_denoiser(work, scan_layers, quantize)
        self._weight_dtype = QUANTIZATIONS[quantize].weights if quantize else work.backbone.dtype
        self._sets = kinds_of(work.vocabulary) if restricted else None
        canvas, _ = self._canvases(0)
        allowed = None if canvas.allowed is None else np.asarray(canvas.allowed)
        self._span = self._sampler.candidates.span(allowed, np.asarray(canvas.groups)[np.asarray(canvas.generate)])

    def warm(self) -> float:
        first, again = self._sample(0, 1)[0], self._sample(0, 1)[0]
        return max(first - again, 0.0)

    def fill(self, seed: int, past: Mapping[str, Filled]) -> Filled:
        seconds, result = self._sample(seed)
        start = self._work.setting.prompt
        tokens, when = (
            np.asarray(x)[:, start : start + self._work.setting.answer] for x in (result.tokens, result.commit_step)
        )
        committed = np.asarray(result.committed).sum(axis=0)
        columns = 0 if self._span is None else self._span.stop - self._span.start
        need = need_of(self._work, self._rows, committed[committed > 0], columns, self._weight_dtype)
        return Filled(seconds, tokens, int(np.asarray(result.steps).max()), need, when)

    def _sample(self, seed: int, most_steps: int | None = None) -> tuple[float, SampleResult]:
        canvas, other = self._canvases(seed)
        began = time.perf_counter()
        result = jax.block_until_ready(sample(self._denoiser, canvas, self._sampler, 0, other, most_steps))
        return time.perf_counter() - began, result

    def peak_bytes(self) -> int:
        """By the compiler's plan of the compiled loop."""
        canvas, other = self._canvases(0)
        if other is not None:
            canvas = stack_canvases(canvas, other)
        answer = self._work.setting.answer
        traced = trace_sampler(self._denoiser, canvas, self._sampler, rows=self._rows, answer=answer, span=self._span)
        return planned_bytes(traced.lower().compile())

    def close(self) -> None:
        pass

    def _canvases(self, seed: int) -> tuple[Canvas, Canvas | None]:
        return self._work.setting.canvases(self._work.vocabulary, seed, self._rows, self._sets)


class Plain:
    """The released algorithm in plain JAX, one canvas at a time. Arguments as for `Loop`."""

    follows = ""

    def __init__(self, work: Work, rows: int):
        if rows != 1:
            raise ValueError(f"rows = {rows}: the released algorithm takes one canvas")
        self._work, self._denoiser = work, make_denoiser(work)

    def warm(self) -> float:
        first, again = self._fill(0, 1)[0], self._fill(0, 1)[0]
        return max(first - again, 0.0)

    def fill(self, seed: int, past: Mapping[str, Filled]) -> Filled:
        seconds, tokens, committed = self._fill(seed)
        start = self._work.setting.prompt
        answer = tokens[None, start : start + self._work.setting.answer]
        return Filled(seconds, answer, len(committed), need_of(self._work, 1, np.array(committed)))

    def _fill(self, seed: int, most_steps: int | None = None) -> tuple[float, np.ndarray, list[int]]:
        work, canvas = self._work, self._canvas(seed)
        began = time.perf_counter()
        tokens, committed = released_style.fill(self._denoiser, canvas, work.setting, work.steps, most_steps)
        return time.perf_counter() - began, tokens, committed

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
        self.follows = "exact" if work.released_steps else ""
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden", "rope_theta")
        spec = {name: getattr(work.backbone, name) for name in sizes} | dataclasses.asdict(work.setting)
        spec |= {"steps": min(work.steps, work.setting.answer), "mask": work.vocabulary.mask}
        spec |= {"device": torch_device(), "threads": len(os.sched_getaffinity(0))}
        with tempfile.TemporaryDirectory() as folder:
            for path, array in flatten_dict(work.params["backbone"], sep=".").items():
                np.save(Path(folder) / f"{path}.npy", np.asarray(array))
            command = [work.torch_python, str(TORCH_SAMPLER), json.dumps(spec | {"weights": folder})]
            self._side = Side("released", command)  # it has read the folder when it is ready

    def warm(self) -> float:
        blank = np.full(self._work.setting.answer, self._work.vocabulary.mask)
        first, again = (self._ask(0, [(0, blank)])["seconds"] for _ in range(2))
        return max(first - again, 0.0)

    def fill(self, seed: int, past: Mapping[str, Filled]) -> Filled:
        if self.follows:
            return self._followed(seed, past[self.follows])
        answer = self._ask(seed)
        need = need_of(self._work, 1, np.array(answer["committed"]))
        return Filled(answer["seconds"], np.array(answer["tokens"][-1:]), len(answer["tokens"]), need)

    def _followed(self, seed: int, other: Filled) -> Filled:
        """Some steps on the canvases of another call; -1 stands wherever one of them chose otherwise."""
        assert other.when is not None
        tokens, when, mask = other.tokens[0], other.when[0], self._work.vocabulary.mask
        taken = min(self._work.released_steps, other.steps)
        # The middles of as many equal parts.
        numbers = [int((part + 0.5) * other.steps / taken) for part in range(taken)]

        def before(step: int) -> np.ndarray:
            return np.where((when >= 0) & (when < step), tokens, mask)

        answer = self._ask(seed, [(step, before(step)) for step in numbers])
        wrong = np.zeros(len(tokens), bool)
        for step, after in zip(numbers, answer["tokens"], strict=True):
            wrong |= np.array(after) != before(step + 1)
        seconds = answer["seconds"] * other.steps / taken
        return Filled(seconds, np.where(wrong, -1, tokens)[None], other.steps, other.need, taken=taken)

    def _ask(self, seed: int, canvases: Sequence[tuple[int, np.ndarray]] | None = None) -> dict[str, Any]:
        """The side's answer; `canvases` are numbers of steps, and the answer's tokens before each."""
        prompts, others = self._work.setting.prompts(self._work.vocabulary, seed, 1)
        request = {"prompt": prompts[0].tokens.tolist(), "unconditional": others[0].tokens.tolist() if others else None}
        steps = None if canvases is None else [[step, tokens.tolist()] for step, tokens in canvases]
        return self._side.step(json.dumps(request | {"canvases": steps}))

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
