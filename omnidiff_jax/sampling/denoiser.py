"""What the sampler asks of a model: a few pure functions. The sampler itself never imports one."""

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
        keep: (params, tokens, context, share) -> ([B, L, D], kept): as `hidden`, and a pytree of what `renew` takes up.
        renew: (params, tokens, context, kept, places int32 [B, C], share) -> ([B, C, D], kept): hidden states of
            distinct places of each row alone (L stands for none), all else as it was kept. `share` is static and the
            same for both: None = every place is computed and `kept` stays as it is; else the share of the places that
            each layer computes. Both are None for a model that only the cache which keeps nothing can sample from.
        shadow: (params, mask int32 [], context, kept, places int32 [B, C], hidden int32 [B, C]) -> [B, C, D]: hidden
            states of masks beside each row at `places` (L stands for none), each of which sees the row but for the
            position `hidden`, and the other masks. `kept` is of `keep` without a share, for the same tokens.
    """

    params: Any
    prepare: Callable[[Any, Canvas], Any] = struct.field(pytree_node=False)
    hidden: Callable[[Any, jax.Array, Any], jax.Array] = struct.field(pytree_node=False)
    logits: Callable[..., jax.Array] = struct.field(pytree_node=False)
    alignment: str = struct.field(pytree_node=False, default="shifted")
    keep: Callable[..., tuple[jax.Array, Any]] | None = struct.field(pytree_node=False, default=None)
    renew: Callable[..., tuple[jax.Array, Any]] | None = struct.field(pytree_node=False, default=None)
    shadow: Callable[..., jax.Array] | None = struct.field(pytree_node=False, default=None)


def taken(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rows `places` int32 [B, C] of `x` [B, L, ...]: [B, C, ...]; L, which stands for none, gives any row."""
    return jax.vmap(lambda row, at: jnp.take(row, at, axis=0, mode="clip"))(x, places)


def module_denoiser(module: Any, params: Any, alignment: str = "shifted") -> Denoiser:
    """The denoiser of a Flax module with the doors of `OmniModel`.

    Args:
        module: has methods `embed_inputs(ModelInputs) -> [B, L, D]` and `logits(hidden, start, stop)`, and a submodule
            `backbone` with `embed(tokens)`, `__call__(embeddings, positions, segment_ids, given)`, and `keep`, `renew`
            and `shadow` as `models.backbone.Backbone` has them.
        params: its unboxed parameters; a tuple of arrays stands for what is stacked from them.
        alignment: of its logits.
    """
    prepare, hidden, logits, keep, renew, shadow = _functions(module)
    return Denoiser(params, prepare, hidden, logits, alignment, keep, renew, shadow)


@functools.lru_cache(maxsize=16)
def _functions(module: Any) -> tuple[Callable[..., Any], ...]:
    """The functions of `module`; cached, because jit knows functions by identity."""

    def whole(params: Any) -> dict[str, Any]:
        """The variables; XLA takes a stack apart again where it is sliced."""

        def apart(x: Any) -> bool:
            return type(x) is tuple

        return {"params": jax.tree.map(lambda x: jnp.stack(x) if apart(x) else x, params, is_leaf=apart)}

    def prepare(params: Any, canvas: Canvas) -> dict[str, jax.Array]:
        inputs = canvas.inputs
        known = dataclasses.replace(inputs, tokens=jnp.maximum(inputs.tokens, 0))
        embeddings = module.apply(whole(params), known, method="embed_inputs")
        in_prompt = jnp.arange(inputs.tokens.shape[1])[None, :] < canvas.answer_start[:, None]
        if canvas.prompt_embeddings is not None:
            embeddings = jnp.where(in_prompt[..., None], canvas.prompt_embeddings.astype(embeddings.dtype), embeddings)
        embeddings = jnp.where(inputs.tokens[..., None] < 0, jnp.zeros((), embeddings.dtype), embeddings)
        return {
            "embeddings": embeddings,
            "generate": canvas.generate,
            "positions": inputs.positions,
            "segment_ids": inputs.segment_ids,
            "given": in_prompt,
        }

    def rows_of(context: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        return context["positions"], context["segment_ids"], context["given"]

    def embedded(module: Any, tokens: jax.Array, generate: jax.Array, embeddings: jax.Array) -> jax.Array:
        fresh = module.backbone.embed(jnp.where(generate, tokens, 0))
        return jnp.where(generate[..., None], fresh, embeddings)

    def run(module: Any, tokens: jax.Array, context: dict[str, jax.Array]) -> jax.Array:
        embeddings = embedded(module, tokens, context["generate"], context["embeddings"])
        return module.backbone(embeddings, *rows_of(context))

    def run_and_keep(
        module: Any, tokens: jax.Array, context: dict[str, jax.Array], share: float | None
    ) -> tuple[jax.Array, Any]:
        embeddings = embedded(module, tokens, context["generate"], context["embeddings"])
        return module.backbone.keep(embeddings, *rows_of(context), share)

    def run_some(
        module: Any, tokens: jax.Array, context: dict[str, jax.Array], kept: Any, places: jax.Array, share: float | None
    ) -> tuple[jax.Array, Any]:
        rows = (taken(x, places) for x in (tokens, context["generate"], context["embeddings"]))
        return module.backbone.renew(embedded(module, *rows), *rows_of(context), kept, places, share)

    def run_shadow(
        module: Any, mask: jax.Array, context: dict[str, jax.Array], kept: Any, places: jax.Array, hidden: jax.Array
    ) -> jax.Array:
        masks = module.backbone.embed(jnp.broadcast_to(mask, places.shape))
        return module.backbone.shadow(masks, context["positions"], context["segment_ids"], kept, places, hidden)

    def hidden(params: Any, tokens: jax.Array, context: dict[str, jax.Array]) -> jax.Array:
        return module.apply(whole(params), tokens, context, method=run)

    def keep(
        params: Any, tokens: jax.Array, context: dict[str, jax.Array], share: float | None = None
    ) -> tuple[jax.Array, Any]:
        return module.apply(whole(params), tokens, context, share, method=run_and_keep)

    def renew(
        params: Any,
        tokens: jax.Array,
        context: dict[str, jax.Array],
        kept: Any,
        places: jax.Array,
        share: float | None = None,
    ) -> tuple[jax.Array, Any]:
        hidden, fresh = module.apply(whole(params), tokens, context, kept, places, share, method=run_some)
        return hidden, kept if share is None else fresh

    def shadow(
        params: Any,
        mask: jax.Array,
        context: dict[str, jax.Array],
        kept: Any,
        places: jax.Array,
        hidden: jax.Array,
    ) -> jax.Array:
        return module.apply(whole(params), mask, context, kept, places, hidden, method=run_shadow)

    def logits(params: Any, rows: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
        return module.apply(whole(params), rows, start, stop, method="logits")

    return prepare, hidden, logits, keep, renew, shadow
