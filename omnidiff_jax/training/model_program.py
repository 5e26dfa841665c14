"""Training the any-to-any model: clean packed batches, corruption on device, masked cross-entropy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, PartitionSpec

from omnidiff_jax.batch import Batch
from omnidiff_jax.diffusion.loss import LossConfig, masked_cross_entropy
from omnidiff_jax.diffusion.masking import MaskingConfig, corrupt
from omnidiff_jax.models.flops import train_flops
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.sharding.rules import logical_rules, param_specs
from omnidiff_jax.training.factors import (
    check_factors,
    code_rows_changed,
    factors_used,
    scaled,
    started_from_bits,
    summed,
    with_factors,
)
from omnidiff_jax.training.lora import SUBTREE, LoraConfig, init_lora, merged
from omnidiff_jax.training.program import TrainProgram
from omnidiff_jax.vocabulary import Vocabulary

if TYPE_CHECKING:
    from omnidiff_jax.data.loader import Loader


@dataclasses.dataclass(frozen=True)
class OmniProgram(TrainProgram):
    """The backbone's training, from data already on the mesh.

    Attributes:
        model: sizes.
        vocabulary: ids.
        masking: objective's corruption.
        loss_config: alignment, weighting, chunking.
        groups: the (source, task) pairs behind `Batch.group_ids`.
        open_loader: seed -> batches; a `data.loader.Loader`.
        seed: of the masks.
        pretrained: parameter subtrees to start from, by top-level name, such as a frozen `speech_encoder`.
        sharding: a strategy of `sharding.rules`.
        lora: thin matrices that are trained beside frozen ones.
        image_factors: bits of each factor of an image code; () = a code is one thing.
        image_bits: share of the variance of an image code's first rows that its bits make up.
    """

    model: OmniConfig
    vocabulary: Vocabulary
    masking: MaskingConfig
    loss_config: LossConfig
    groups: tuple[tuple[str, str], ...]
    open_loader: Callable[[int], "Loader"]
    seed: int = 0
    pretrained: dict[str, Any] = dataclasses.field(default_factory=dict)
    sharding: str = "fsdp"
    lora: LoraConfig = LoraConfig()
    image_factors: tuple[int, ...] = ()
    image_bits: float = 0.0

    def __post_init__(self):
        check_factors(self.image_factors, self.vocabulary)

    @property
    def _factors(self) -> tuple[int, ...]:
        return factors_used(self.image_factors, self.lora.rank)

    def init(self, key: jax.Array) -> Any:
        params = scaled(meta.unbox(init_params(self.model, key)), self._factors, self.vocabulary)
        params = started_from_bits(params, self.image_bits, self.vocabulary, jax.random.fold_in(key, 2))
        params |= {name: jax.tree.map(jnp.asarray, tree) for name, tree in self.pretrained.items()}
        if self.lora.rank:
            params[SUBTREE] = init_lora(params, self.lora, jax.random.fold_in(key, 1))
        return params

    def whole(self, params: Any) -> Any:
        """The model's own parameters, LoRA's products added, image rows as sums: what samples and is exported."""
        return with_factors(merged(params, self.lora), self._factors, self.vocabulary)

    def whole_array(self, path: str, array: Any) -> Any:
        """One array of `whole`, of those without a product to add, by its "/"-joined path."""
        part, _, name = path.partition("/")
        if not self._factors or part != "backbone" or name not in ("embedding", "head"):
            return array
        return code_rows_changed(name, array, self.vocabulary, lambda rows: summed(rows, self._factors))

    def loss(
        self, params: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        corrupted = corrupt(batch, self.seed, self.masking, self.vocabulary)
        # What may be masked is the answer, in every turn; all else is given.
        inputs = dataclasses.replace(batch.inputs, tokens=corrupted.tokens, given=~batch.targets)
        params = self.whole(params)
        with logical_rules(self.sharding):
            hidden = OmniModel(self.model).apply({"params": params}, inputs)
            result = masked_cross_entropy(
                hidden, params["backbone"]["head"], batch, corrupted, self.loss_config, len(self.groups)
            )
        sums = {
            f"sum/{name}": getattr(result, name)
            for name in (
                "masked", "targets", "nll", "weighted_nll", "correct", "dropped",
                "group_nll", "group_masked", "group_correct", "noise_nll", "noise_masked",
            )
        }  # fmt: skip
        sums["sum/tokens"] = (batch.inputs.segment_ids > 0).sum().astype(jnp.float32)
        sums["sum/fingerprint"] = fingerprint(batch, corrupted.tokens)
        return result.loss, {"weight": result.normalizer} | sums

    def batches(self, seed: int) -> "Loader":
        return self.open_loader(seed)

    def param_specs(self, params: Any, mesh: Mesh) -> Any:
        boxed = jax.eval_shape(lambda: init_params(self.model, jax.random.key(0)))
        specs = param_specs(boxed, self.sharding, mesh)
        if SUBTREE in params:
            specs[SUBTREE] = jax.tree.map(lambda _: PartitionSpec(), params[SUBTREE])
        return specs

    def place(self, batch: Batch, mesh: Mesh) -> Batch:
        return batch  # the loader has put it on the mesh

    def report(self, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """Adds loss and accuracy per task and per source, and loss per noise level; both loss weightings are logged."""
        sums = {k.removeprefix("sum/"): v for k, v in metrics.items() if k.startswith("sum/")}
        values = super().report(metrics)
        targets = max(float(sums["targets"]), 1.0)
        values |= {
            "loss_unweighted": _ratio(sums["nll"], sums["masked"]),
            "loss_inverse_t": float(sums["weighted_nll"]) / targets,
            "accuracy": _ratio(sums["correct"], sums["masked"]),
            "masked_share": float(sums["masked"]) / targets,
            "tokens": float(sums["tokens"]),
            "fingerprint": f"{int(sums['fingerprint']):08x}",
        }
        for kind, position in (("task", 1), ("source", 0)):
            names = [group[position] for group in self.groups]
            nll, masked, correct = (_by_name(names, sums[f"group_{what}"]) for what in ("nll", "masked", "correct"))
            seen = [name for name in masked if masked[name] > 0]
            values[f"{kind}_loss"] = {name: _ratio(nll[name], masked[name]) for name in seen}
            values[f"{kind}_accuracy"] = {name: _ratio(correct[name], masked[name]) for name in seen}
        buckets = len(sums["noise_masked"])
        values["noise_loss"] = {
            f"{i / buckets:.2f}-{(i + 1) / buckets:.2f}": _ratio(sums["noise_nll"][i], sums["noise_masked"][i])
            for i in range(buckets)
            if sums["noise_masked"][i] > 0
        }
        if sums["dropped"] > 0:
            values["dropped_targets"] = float(sums["dropped"])
        return values

    def flops(self, batch: Batch, tokens: float) -> float:
        return train_flops(self.model.backbone, int(tokens), batch.inputs.tokens.shape[1])

    def describe(self, batch: Batch) -> str:
        return f"sample ids {sample_ids(batch)}"


def fingerprint(batch: Batch, tokens: jax.Array) -> jax.Array:
    """uint32 scalar of the samples of a batch, their places, epochs and masks, however it is sharded.

    Args:
        tokens: int32 [B, L], corrupted ids.

    Two runs that log the same fingerprints see the same samples under the same masks in the same order.
    """

    def mixed(x: jax.Array, salt: int) -> jax.Array:
        place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)  # odd weights: no single change goes unseen
        return (x.astype(jnp.uint32) * (2 * place + 1) * jnp.uint32(salt)).sum(dtype=jnp.uint32)

    return (
        mixed(batch.sample_ids, 0x9E3779B1)
        + mixed(batch.epochs, 0x85EBCA77)
        + mixed(batch.group_ids, 0xC2B2AE3D)
        + mixed(tokens, 0x27D4EB2F)
    )


def sample_ids(batch: Batch) -> Sequence[int]:
    """Ids of the samples of a batch that this process holds, row by row."""
    ids: list[int] = []
    tasks, names = batch.group_ids, batch.sample_ids
    pieces = (
        [
            (np.asarray(t.data), np.asarray(i.data))
            for t, i in zip(tasks.addressable_shards, names.addressable_shards, strict=True)
        ]
        if isinstance(tasks, jax.Array)
        else [(np.asarray(tasks), np.asarray(names))]
    )
    for task, name in pieces:
        ids.extend(int(x) for x in name[task >= 0])
    return ids


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Sums of the values under each name, in the order in which names are first met."""
    totals: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _ratio(total: Any, count: Any) -> float:
    return float(total) / max(float(count), 1.0)
