"""Codes to sound, end to end: parity with the released path, batches equal to single utterances, folders on disk."""

import dataclasses

import jax
import numpy as np
import pytest

from omnidiff_jax.conversion import flow as flow_conversion
from omnidiff_jax.conversion import hift as hift_conversion
from omnidiff_jax.conversion.rules import to_flax
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.features import MelConfig
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, TokenEncoderConfig
from omnidiff_jax.models.hift import Hift, HiftConfig, SourceNoise
from omnidiff_jax.tokenizers import assets
from omnidiff_jax.tokenizers.buckets import Buckets
from omnidiff_jax.tokenizers.speech import SpeechDecoder, SpeechDecoderConfig, SpeechTokenizer

SMALL = SpeechDecoderConfig(
    flow=FlowConfig(
        codes=50,
        mels=20,
        speaker_dim=24,
        encoder=TokenEncoderConfig(width=32, heads=4, hidden=64, layers=2, block_size=4),
        estimator=EstimatorConfig(channels=(32, 32), mid_blocks=2, transformers=1, heads=2, head_dim=24),
    ),
    mel=MelConfig(num_mels=20),
    hift=HiftConfig(mels=20, base_channels=32, pitch_channels=24),
)


@pytest.fixture(scope="module")
def params(golden):
    def convert(file, rules):
        state = {k.removeprefix("params/"): v for k, v in np.load(golden / file).items() if k.startswith("params/")}
        return to_flax(rules, state)

    return {
        "flow": convert("05_flow.npz", flow_conversion.rules(SMALL.flow)),
        "hift": convert("06_hift.npz", hift_conversion.rules(SMALL.hift)),
    }


@pytest.fixture(scope="module")
def fixture(golden):
    return dict(np.load(golden / "07_token2wav.npz"))


@pytest.fixture(scope="module")
def decoder(params):
    return SpeechDecoder(SMALL, params)


def test_sound_matches_the_released_path(decoder, fixture):
    mels = decoder.mels([fixture["in/token"][0]], [fixture["in/noise"][0].T])
    np.testing.assert_allclose(mels[0].T, fixture["out/mel"][0], atol=1e-4)

    phase, noise = fixture["in/phase_uniform"][:, :, 0], fixture["in/sine_noise_randn"].transpose(0, 2, 1)
    vocode = jax.jit(lambda p, *args: Hift(SMALL.hift).apply({"params": p}, *args)[0])
    wave = vocode(decoder.params["hift"], mels[0][None], np.array([len(mels[0])]), SourceNoise(phase, noise))
    np.testing.assert_allclose(wave, fixture["out/waveform"], atol=1e-2)


def test_an_utterance_sounds_the_same_in_any_batch(decoder):
    generator = np.random.default_rng(0)
    codes = [generator.integers(50, size=n).astype(np.int32) for n in (5, 0, 40, 9)]
    together = decoder.decode(codes)
    assert [len(wave.samples) for wave in together] == [256 * SMALL.flow.frames(len(c)) for c in codes]
    for index in (0, 2):
        alone = decoder.decode([codes[index]])[0]
        np.testing.assert_allclose(together[index].samples, alone.samples, atol=2e-5)


def test_codes_out_of_range_are_refused(decoder):
    with pytest.raises(UserError, match=r"speech codes must lie in 0\.\.49, utterance 1 has 3\.\.50"):
        decoder.mels([np.array([1]), np.array([3, 50])])


def test_folder_round_trip(decoder, tmp_path):
    plain = dataclasses.replace(SMALL, hift=None, griffin_lim_iterations=2)
    SpeechDecoder(plain, {"flow": decoder.params["flow"]}).save(tmp_path)
    loaded = SpeechDecoder.load(tmp_path)
    assert loaded.config == plain
    wave = loaded.decode([np.arange(6)])[0]
    assert len(wave.samples) == 256 * SMALL.flow.frames(6) and np.isfinite(wave.samples).all()


def test_buckets_cover_every_sequence_once():
    sizes = [3, 0, 16, 17, 40, 5, *[8] * 30]
    groups = list(Buckets(shortest=16, rows=(1, 8), places=256).groups(sizes))
    assert sorted(i for g in groups for i in g.members) == [i for i, n in enumerate(sizes) if n]
    for group in groups:
        assert group.rows in (1, 8) and group.rows * group.length <= 256
        assert all(sizes[i] <= group.length for i in group.members)
        np.testing.assert_array_equal(group.lengths[: len(group.members)], [sizes[i] for i in group.members])
        assert not group.lengths[len(group.members) :].any()


@pytest.mark.parametrize("name", ["speech_tokenizer", "speech_decoder"])
def test_shipped_nano_weights_are_small(name):
    assert sum(file.stat().st_size for file in assets.nano_dir(name).iterdir()) < 2.2e6


def test_shipped_decoder_fits_the_shipped_tokenizer():
    tokenizer = SpeechTokenizer.load(assets.nano_dir("speech_tokenizer"))
    decoder = SpeechDecoder.load(assets.nano_dir("speech_decoder"))
    assert tokenizer.codebook_size == decoder.config.flow.codes
    assert tokenizer.config.samples_per_code / 16000 == 1 / decoder.config.flow.code_rate
