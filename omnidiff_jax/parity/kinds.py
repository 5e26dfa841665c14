"""The kinds of fixtures: what repeats each, and which of its outputs must be there and be reproduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax

from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.parity import backbone, image, sampler, samples, speech_codes, speech_in, speech_out
from omnidiff_jax.parity.check import Check, Row
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet


@dataclass(frozen=True)
class Kind:
    """A kind of fixture: how its recording is repeated, and what that must reproduce.

    Attributes:
        run: repeats the recorded computation and compares.
        required: patterns of output names.
    """

    run: Callable[[Fixture, Check, FixtureSet], None]
    required: tuple[str, ...] = ()


def _outputs(*names: str) -> tuple[str, ...]:
    return tuple(f"out/{name}" for name in names)


KINDS: dict[str, Kind] = {
    "dream_backbone": Kind(
        backbone.dream_backbone,
        _outputs(
            "dream_logits",
            "dream_hidden_states",
            "dream_logits_shifted_positions",
            "train_logits",
            "train_loss_per_row",
            "train_row0_grad*",
        ),
    ),
    "audio_prompt": Kind(backbone.audio_prompt, _outputs("inputs_embeds", "logits")),
    "sampler": Kind(sampler.sampler, _outputs("sequence", "history", "num_transfer", "steps_per_block")),
    "sampler_weights": Kind(sampler.sampler_weights),
    "sample_tokens": Kind(sampler.sample_tokens, _outputs("confidence", "x0", "pos_confidence", "pos_x0")),
    "forward_process": Kind(samples.forward_process, _outputs("*/masked_indices")),
    "preprocess": Kind(
        samples.preprocess,
        _outputs("*/padded_input_ids", "*/padded_labels", "*/masked_indices", "*/input_ids", "*/labels"),
    ),
    "packing": Kind(
        samples.packing,
        _outputs("pack*/input_ids", "pack*/labels", "pack*/position_ids", "pack*/attention_mask", "pack*/cu_seq_lens"),
    ),
    "magvitv2": Kind(image.magvitv2, _outputs("encoder_z", "codes", "decoded_from_codes", "decoded_from_random_codes")),
    "sensevoice_frontend": Kind(
        speech_in.sensevoice_frontend,
        _outputs("fbank", "lfr", "features", "features_dither1", "features_short", "features_len*", "lfr_case_T*"),
    ),
    "sensevoice_encoder": Kind(
        speech_in.sensevoice_encoder,
        _outputs(
            "encoder_out",
            "encoder_out_lens",
            "ctc_log_softmax",
            "encoder_out_language_en_withitn",
            "posenc_f32_T6",
            "bf16/posenc_bits_uint16",
        ),
    ),
    "resampler_projector": Kind(speech_in.resampler_projector, _outputs("y")),
    "whisper_vq_encoder_main": Kind(
        speech_codes.whisper_vq_encoder_main,
        _outputs("input_features", "pre_vq_hidden", "quantized_token_ids", "speech_tokens_*"),
    ),
    "whisper_vq_encoder_var": Kind(
        speech_codes.whisper_vq_encoder_var,
        _outputs("pre_vq_hidden", "quantized_token_ids", "last_hidden_state", "speech_tokens_*"),
    ),
    "flow": Kind(
        speech_out.flow,
        _outputs(
            "plain/mel",
            "plain/mu_BTD",
            "plain/encoder_out",
            "prompt/mel",
            "ragged/estimator_out",
            "ragged/encoder_out",
            "train/loss",
        ),
    ),
    "hift": Kind(speech_out.hift, _outputs("plain/f0", "plain/source", "plain/waveform", "cached/waveform")),
    "token2wav": Kind(speech_out.token2wav, _outputs("mel", "waveform")),
    "rates": Kind(speech_in.rates, _outputs("*")),
    "resample": Kind(speech_in.resample, _outputs("wave_*_to_16000")),
}


def run(fixtures: FixtureSet) -> Iterator[list[Row]]:
    """The rows of each file in turn; a file that cannot be read or run has a row that fails."""
    for path in fixtures.paths:
        try:
            fixture = fixtures.load(path)
        except UserError as error:
            yield [Row(path.stem, "*", None, 0.0, False, str(error))]
            continue
        check = Check(fixture)
        kind = KINDS.get(fixture.kind)
        if kind is None:
            check.fail("*", f"unknown kind {fixture.kind!r}; {suggest(fixture.kind, KINDS)}")
            yield check.rows
            continue
        try:
            with jax.default_matmul_precision("highest"):
                kind.run(fixture, check, fixtures)
        except Exception as error:  # a fixture may hold anything; what it breaks is its own verdict
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            check.fail("*", " ".join(reason.split())[:300])
        check.finish(kind.required)
        yield check.rows
