"""A run small enough to train, interrupt and sample in a test: random speech tokenizers and the nano config shrunk."""

import textwrap
from pathlib import Path

import jax
import numpy as np
from flax.core import meta

from omnidiff_jax.media.features import MelConfig
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, TokenEncoderConfig
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig
from omnidiff_jax.tokenizers.speech import (
    SpeechDecoder,
    SpeechDecoderConfig,
    SpeechTokenizer,
    decoder_shapes,
    tokenizer_shapes,
)
from omnidiff_jax.tokenizers.speech_encoder import HearingConfig, encoder_shapes, save_speech_encoder

CODES = 64
TOKENIZER = WhisperVQConfig(
    num_mels=80,
    width=16,
    heads=2,
    ffn=32,
    layers=1,
    max_positions=4,
    block_size=None,
    pooling_position=1,
    quantize_position=1,
    codebook_size=CODES,
)
DECODER = SpeechDecoderConfig(
    FlowConfig(
        codes=CODES,
        sample_rate=16000,
        hop=256,
        mels=40,
        speaker_dim=4,
        encoder=TokenEncoderConfig(width=16, heads=2, hidden=32, layers=1),
        regulator_layers=1,
        estimator=EstimatorConfig(channels=(16,), mid_blocks=1, transformers=1, heads=2, head_dim=8, groups=4),
        steps=2,
    ),
    MelConfig(rate=16000, hop=256, num_mels=40),
    hift=None,
    griffin_lim_iterations=2,
)
HEARING = HearingConfig(
    encoder=SpeechEncoderConfig(width=16, heads=2, ffn=32, blocks=1, tp_blocks=1, vocab_size=8, max_positions=256)
)

CONFIG = """
    from experiments.configs import nano


    def get_config():
        config = nano.get_config()
        config.total_steps = {steps}
        config.batch_size = 4
        config.checkpoint_every = 4
        config.model.update({{"width": 64, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 96}})
        config.data.streams = 2
        for source in config.data.sources.values():
            source.examples = 40
        for name in ("speech_encoder", "speech_tokenizer", "speech_decoder"):
            config.tokenizers[name] = {folder!r} + "/" + name
        return config
"""


def _random(shapes):
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda s: draw.normal(0, 0.1, s.shape).astype(s.dtype), meta.unbox(shapes))


def write_config(folder: Path, steps: int = 24) -> Path:
    """Speech tokenizers with random weights, and a config file that names them; returns the file."""
    SpeechTokenizer(TOKENIZER, _random(tokenizer_shapes(TOKENIZER))).save(folder / "speech_tokenizer")
    SpeechDecoder(DECODER, _random(decoder_shapes(DECODER))).save(folder / "speech_decoder")
    save_speech_encoder(folder / "speech_encoder", HEARING, _random(encoder_shapes(HEARING.encoder)))
    file = folder / "tiny.py"
    file.write_text(textwrap.dedent(CONFIG.format(steps=steps, folder=str(folder))))
    return file
