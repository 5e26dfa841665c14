"""Training of the image tokenizer: MAGVIT-v2 with look-up-free quantization."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from omnidiff_jax import rng
from omnidiff_jax.config import Count, Natural, NonNegative
from omnidiff_jax.errors import UserError
from omnidiff_jax.models import lfq, patchgan
from omnidiff_jax.models.efficientnet import EfficientNetConfig, perceptual_distance
from omnidiff_jax.models.magvit import Magvit, MagvitConfig
from omnidiff_jax.tokenizers.image import ImageTokenizer, to_unit
from omnidiff_jax.training.program import BatchStream, TrainProgram

Pictures = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(first index, count) -> (seen, wanted), uint8 [count, H, W, 3] each: what the encoder looks at, and what the decoder
shall draw. They may be the same array; where they differ (the same scene without its jitter), codes learn to ignore
the difference. A pure function of its arguments."""

Partners = Callable[[int, int], np.ndarray]
"""(first index, count) -> uint8 [factors, count, H, W, 3], to go with `Pictures` at the same indices: picture f shares
with the seen one what factor f of the code is to hold (its forms, its colours), and nothing else."""

FROZEN = ("perceptual/*",)
"""Patterns of `OptimizerConfig.frozen` for a run with the perceptual term."""

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(originals, decoded), uint8 [N, H, W, 3] each -> bool [N]: does the decoded picture show the same things?"""


class Network(NamedTuple):
    """A network that has learned to see, and its parameters: what the perceptual term compares by."""

    config: EfficientNetConfig
    params: Any


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """How much a discriminator has to say.

    Attributes:
        weight: of the decoder's adversarial loss.
        start: step from which the decoder feels it; the discriminator learns from step 0.
        discriminator: its sizes.
    """

    weight: NonNegative = 0.1
    start: Natural = 0
    discriminator: patchgan.DiscriminatorConfig = dataclasses.field(default_factory=patchgan.DiscriminatorConfig)


@dataclasses.dataclass(frozen=True)
class ImageTokenizerTraining:
    """What the image tokenizer minimises.

    The shipped nano tokenizer was trained without the adversarial term: flat shapes on plain grounds have no texture
    for a discriminator to ask for, and it would take half of the minutes the CPU has. Photographs want it on.

    Attributes:
        model: sizes of the autoencoder.
        quantizer: weights of the quantizer's own losses.
        spread_steps: the batch entropy's weight falls linearly to 0 at this step (use many codes first, then be sure of
            them); 0 keeps it.
        absolute, squared: weights of the mean absolute and squared pixel error.
        gradient: weight of the absolute error of horizontal and vertical pixel differences; sharpens outlines, and
            needs no pretrained network.
        perceptual: weight of how unlike drawn and wanted picture look to a network trained elsewhere
            (`efficientnet.perceptual_distance`); 0 = it is not asked.
        agreement: weight of the squared distance from the features of the seen picture to the code of the wanted one.
        factors: bits of each factor of the code, in order; () = one. Bits of a factor are asked to be the same in
            pictures that share only that factor (von Kügelgen et al. 2021), so that what was never seen together has a
            code whose parts were seen.
        factor_agreement: weight of the squared distance of a partner's features to the wanted picture's code, in the
            bits of their factor.
        adversarial: PatchGAN term; None for none.
        batch_size: pictures a step.
        validation_size: pictures of `ImageTokenizerProgram.validate`.
    """

    model: MagvitConfig
    quantizer: lfq.LfqLossConfig = dataclasses.field(default_factory=lfq.LfqLossConfig)
    spread_steps: Natural = 0
    absolute: NonNegative = 1.0
    squared: NonNegative = 1.0
    gradient: NonNegative = 0.5
    perceptual: NonNegative = 0.0
    agreement: NonNegative = 0.0
    factors: tuple[Count, ...] = ()
    factor_agreement: NonNegative = 0.0
    adversarial: AdversarialConfig | None = None
    batch_size: Count = 32
    validation_size: Count = 512

    def __post_init__(self) -> None:
        if self.factors and sum(self.factors) != self.model.code_bits:
            raise ValueError(f"factors = {self.factors} must add up to model.code_bits = {self.model.code_bits}")


class ImageTokenizerProgram(TrainProgram):
    """Parameters are {"tokenizer": ...}, and "discriminator" beside it where the adversarial term is on, "perceptual"
    where that term is: those of a network that stays as it is, so the optimizer's `frozen` must name them (`FROZEN`).

    Both players learn in the same step from one loss: the decoder's term sees the discriminator's parameters as
    constants, and the discriminator's term sees the decoded images as constants.
    """

    def __init__(
        self,
        config: ImageTokenizerTraining,
        pictures: Pictures,
        held_out: Pictures,
        judge: Judge | None = None,
        partners: Partners | None = None,
        held_out_partners: Partners | None = None,
        network: Network | None = None,
    ):
        if config.perceptual and network is None:
            raise UserError(f"training.perceptual = {config.perceptual} needs a network, which this run has not; set 0")
        self._network = network if config.perceptual else None
        if config.factors and (partners is None or held_out_partners is None):
            raise UserError(f"training.factors = {config.factors} needs pictures that share one factor each")
        self.config = config
        self._partners, self._held_out_partners = (partners, held_out_partners) if config.factors else (None, None)
        self._model = Magvit(config.model)
        self._critic = patchgan.Discriminator(config.adversarial.discriminator) if config.adversarial else None
        self._pictures, self._held_out, self._judge = pictures, held_out, judge

    def init(self, key: jax.Array) -> Any:
        seen, _ = self._pictures(0, 1)
        images = jnp.zeros(seen.shape, jnp.float32)
        params = {"tokenizer": meta.unbox(self._model.init(rng.named(key, "tokenizer"), images)["params"])}
        if self._critic is not None:
            params["discriminator"] = self._critic.init(rng.named(key, "discriminator"), images)["params"]
        if self._network is not None:
            params["perceptual"] = jax.tree.map(jnp.asarray, self._network.params)
        return params

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of batches {"seen", "wanted"}: uint8 [B, H, W, 3] each; "partners", with factors: [B, factors, H, W, 3]."""
        cfg, tokenizer = self.config, {"params": params["tokenizer"]}
        seen, wanted = to_unit(batch["seen"]), to_unit(batch["wanted"])
        drawn, z = self._model.apply(tokenizer, seen)
        error = drawn - wanted
        metrics = {"absolute": jnp.mean(jnp.abs(error)), "squared": jnp.mean(jnp.square(error))}
        down, across = (jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
        metrics["gradient"] = down + across
        loss = (
            cfg.absolute * metrics["absolute"] + cfg.squared * metrics["squared"] + cfg.gradient * metrics["gradient"]
        )
        spread = jnp.maximum(1.0 - step / cfg.spread_steps, 0.0) if cfg.spread_steps else 1.0
        if self._network is not None:
            metrics["perceptual"] = perceptual_distance(self._network.config, params["perceptual"], drawn, wanted)
            loss += cfg.perceptual * metrics["perceptual"]
        quantizer_loss, parts = lfq.lfq_losses(z, cfg.quantizer, spread)
        loss += quantizer_loss
        if cfg.agreement or cfg.factors:
            code = jax.lax.stop_gradient(lfq.quantize(self._model.apply(tokenizer, wanted, method="features")))
            parts["agreement"] = jnp.mean(jnp.square(z - code))
            loss += cfg.agreement * parts["agreement"]
            if cfg.factors:
                parts["factor_agreement"] = self._factor_agreement(tokenizer, batch["partners"], code)
                loss += cfg.factor_agreement * parts["factor_agreement"]
        if cfg.adversarial is not None:
            adversarial, more = self._adversarial(params["discriminator"], wanted, drawn, step)
            loss += adversarial
            parts |= more
        return loss, metrics | parts

    def _factor_agreement(self, tokenizer: Any, partners: jax.Array, code: jax.Array) -> jax.Array:
        """Mean squared distance of each partner's features [B, h, w, K] to the code, in the bits of its factor."""
        distances, start = [], 0
        for factor, bits in enumerate(self.config.factors):
            z = self._model.apply(tokenizer, to_unit(partners[:, factor]), method="features")
            part = slice(start, start + bits)
            distances.append(jnp.mean(jnp.square(z[..., part] - code[..., part])))
            start += bits
        return jnp.mean(jnp.stack(distances))

    def _adversarial(self, critic: Any, real: jax.Array, drawn: jax.Array, step: jax.Array):
        assert self._critic is not None and self.config.adversarial is not None
        cfg = self.config.adversarial
        fixed = jax.lax.stop_gradient(critic)
        decoder = patchgan.generator_loss(self._critic.apply({"params": fixed}, drawn))
        judged = self._critic.apply({"params": critic}, jnp.concatenate([real, jax.lax.stop_gradient(drawn)]))
        discriminator = patchgan.discriminator_loss(*jnp.split(judged, 2))
        weight = jnp.where(step >= cfg.start, cfg.weight, 0.0)
        return weight * decoder + discriminator, {"decoder": decoder, "discriminator": discriminator}

    def batches(self, seed: int) -> Iterator[Any]:
        return PictureStream(self._pictures, self.config.batch_size, seed, self._partners)

    def validate(self, params: Any) -> dict[str, float]:
        """Held-out numbers: `psnr` (dB, against the wanted pictures), `codes_used`, `code_perplexity`, `code_agreement`
        (share of codes that seen and wanted picture have in common), `factor_agreement` (share of a factor's codes that
        its partner has too, of the factor that fares worst), and `survival` (share the judge accepts)."""
        tokenizer = ImageTokenizer(self.config.model, params["tokenizer"])
        seen, wanted = self._held_out(0, self.config.validation_size)
        codes = tokenizer.encode(seen)
        drawn = tokenizer.decode(codes, tokenizer.grid(*seen.shape[1:3]))
        error = np.mean(np.square(drawn.astype(np.float32) - wanted), axis=(1, 2, 3))
        share = np.bincount(codes.ravel(), minlength=self.config.model.codebook_size) / codes.size
        share = share[share > 0]
        report = {
            "psnr": float(np.mean(10.0 * np.log10(255.0**2 / np.maximum(error, 1e-2)))),
            "codes_used": float(len(share)),
            "code_perplexity": float(np.exp(-np.sum(share * np.log(share)))),
            "code_agreement": float(np.mean(codes == tokenizer.encode(wanted))),
        }
        if self._held_out_partners is not None:
            partners = self._held_out_partners(0, self.config.validation_size)
            shares, right = [], self.config.model.code_bits
            for pictures, bits in zip(partners, self.config.factors, strict=True):
                right -= bits
                same = (tokenizer.encode(pictures) ^ codes) >> right & ((1 << bits) - 1)
                shares.append(float(np.mean(same == 0)))
            report["factor_agreement"] = min(shares)
        if self._judge is not None:
            report["survival"] = float(np.mean(self._judge(seen, drawn)))
        return report

    def export(self, params: Any, directory: str | os.PathLike[str]) -> None:
        """Writes what `ImageTokenizer.load` reads."""
        ImageTokenizer(self.config.model, params["tokenizer"]).save(directory)


class PictureStream(BatchStream):
    """Batches {"seen", "wanted"} (and "partners") at successive indices; another seed starts elsewhere."""

    def __init__(self, pictures: Pictures, batch_size: int, seed: int, partners: Partners | None = None):
        self._pictures, self._batch_size, self._seed, self._partners = pictures, batch_size, seed, partners
        self._taken = 0

    def __next__(self) -> Any:
        first = (self._seed * 10_000_000 + self._taken * self._batch_size) % 2**31
        seen, wanted = self._pictures(first, self._batch_size)
        self._taken += 1
        batch = {"seen": seen, "wanted": wanted}
        if self._partners is not None:
            # Batch first, as everything that is split over devices.
            batch["partners"] = self._partners(first, self._batch_size).swapaxes(0, 1)
        return batch

    def set_state(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]
