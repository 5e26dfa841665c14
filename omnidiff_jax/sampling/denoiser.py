"""What the sampler asks of a model: three pure functions. The sampler itself never imports one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from omnidiff_jax.sampling.canvas import Canvas


@struct.dataclass
class Denoiser:
    """A model as the sampler sees it. Two denoisers of the same functions share compiled code, whatever their params.

    Attributes:
        params: any pytree.
        prepare: (params, canvas) -> context, a pytree; what does not change from step to step, such as the
            embeddings of the prompt and of its speech. Called once per sampling; it begins the loop's state (`Cache`).
        hidden: (params, tokens int32 [B, L], context) -> [B, L, D].
        logits: (params, rows of hidden [n, D]) -> [n, V]; with `start` and `stop`, [n, stop - start], those of the ids
            start .. stop - 1 alone.
        alignment: which hidden state predicts a token, a name in `diffusion.alignment.ALIGNMENTS`.
    """

    params: Any
    prepare: Callable[[Any, Canvas], Any] = struct.field(pytree_node=False)
    hidden: Callable[[Any, jax.Array, Any], jax.Array] = struct.field(pytree_node=False)
    logits: Callable[..., jax.Array] = struct.field(pytree_node=False)
    alignment: str = struct.field(pytree_node=False, default="shifted")


def module_denoiser(module: Any, params: Any, alignment: str = "shifted") -> Denoiser:
    """The denoiser of a Flax module with the doors of `OmniModel`.

    Args:
        module: has methods `embed_inputs(ModelInputs) -> [B, L, D]` and `logits(hidden, start, stop)`, and a submodule
            `backbone` with `embed(tokens)` and `__call__(embeddings, positions, segment_ids)`.
        params: its unboxed parameters; a tuple of arrays stands for what is stacked from them.
        alignment: of its logits.
    """
    return Denoiser(params, *_functions(module), alignment)


@functools.lru_cache(maxsize=16)
def _functions(module: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The three functions of `module`; cached, because jit knows functions by identity."""

    def whole(params: Any) -> dict[str, Any]:
        """The variables; XLA takes a stack apart again where it is sliced."""

        def apart(x: Any) -> bool:
            return type(x) is tuple

        return {"params": jax.tree.map(lambda x: jnp.stack(x) if apart(x) else x, params, is_leaf=apart)}

    def prepare(params: Any, canvas: Canvas) -> dict[str, jax.Array]:
        inputs = canvas.inputs
        known = dataclasses.replace(inputs, tokens=jnp.maximum(inputs.tokens, 0))
        embeddings = module.apply(whole(params), known, method="embed_inputs")
        if canvas.prompt_embeddings is not None:
            positions = jnp.arange(inputs.tokens.shape[1])[None, :]
            in_prompt = positions < canvas.answer_start[:, None]
            embeddings = jnp.where(in_prompt[..., None], canvas.prompt_embeddings.astype(embeddings.dtype), embeddings)
        embeddings = jnp.where(inputs.tokens[..., None] < 0, jnp.zeros((), embeddings.dtype), embeddings)
        return {
            "embeddings": embeddings,
            "generate": canvas.generate,
            "positions": inputs.positions,
            "segment_ids": inputs.segment_ids,
        }

    def embed_and_run(module: Any, tokens: jax.Array, context: dict[str, jax.Array]) -> jax.Array:
        fresh = module.backbone.embed(jnp.where(context["generate"], tokens, 0))
        embeddings = jnp.where(context["generate"][..., None], fresh, context["embeddings"])
        return module.backbone(embeddings, context["positions"], context["segment_ids"])

    def hidden(params: Any, tokens: jax.Array, context: dict[str, jax.Array]) -> jax.Array:
        return module.apply(whole(params), tokens, context, method=embed_and_run)

    def logits(params: Any, rows: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
        return module.apply(whole(params), rows, start, stop, method="logits")

    return prepare, hidden, logits
