"""Tiny checkpoints in the released form: random tensors under the released names, written as the hub lays them out."""

import json

import ml_dtypes
import numpy as np
import pytest

from omnidiff_jax.config import to_dict
from omnidiff_jax.conversion.components import COMPONENTS, OmniParts
from omnidiff_jax.conversion.magvit import buffers
from omnidiff_jax.conversion.rules import torch_shapes
from omnidiff_jax.conversion.sources import open_released
from omnidiff_jax.conversion.tensor_files import SafetensorsWriter
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.flow import EstimatorConfig, FlowConfig, TokenEncoderConfig
from omnidiff_jax.models.hift import HiftConfig
from omnidiff_jax.models.magvit import MagvitConfig
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.models.whisper_vq import WhisperVQConfig

BF16 = np.dtype(ml_dtypes.bfloat16)
BACKBONE = BackboneConfig(vocab_size=40, width=16, layers=3, heads=4, kv_heads=2, head_dim=4, hidden=24)
ENCODER = SpeechEncoderConfig(features=14, width=8, heads=2, ffn=12, blocks=3, tp_blocks=2, kernel=5, vocab_size=7)
TINY = {
    "omni": OmniParts(BACKBONE, ENCODER, AdapterConfig(8, 16)),
    "adapter": AdapterConfig(8, 16),
    "sensevoice": ENCODER,
    "whisper_vq": WhisperVQConfig(
        num_mels=8, width=64, heads=1, ffn=16, layers=3, max_positions=20, pooling_position=3, quantize_position=3,
        codebook_size=9,
    ),
    "magvit": MagvitConfig(
        channels=32, encoder_multipliers=(1, 2), encoder_blocks=(1, 2), encoder_kernels=(3, 3),
        decoder_multipliers=(1, 2), decoder_blocks=(2, 1), code_bits=5,
    ),
    "flow": FlowConfig(
        codes=11, mels=6, speaker_dim=5, code_width=8, encoder=TokenEncoderConfig(8, 2, 12, 2),
        estimator=EstimatorConfig((8, 16), mid_blocks=2, transformers=1, heads=1, head_dim=64),
    ),
    "hift": HiftConfig(mels=6, base_channels=16, pitch_channels=8, pitch_layers=2),
}  # fmt: skip


def released_tensors(name, seed=0, dtype=np.float32):
    """Random tensors of a tiny checkpoint, in the released names."""
    component, rng = COMPONENTS[name], np.random.default_rng(seed)
    shapes = torch_shapes(component.rules(TINY[name]), component.abstract(TINY[name]))
    tensors = {n: rng.standard_normal(shape, np.float32).astype(dtype) for n, shape in shapes.items()}
    if name == "magvit":
        tensors |= {n: value.astype(dtype) for n, value in buffers(5).items()}
    if name == "whisper_vq":
        tensors |= {"ema_count": np.ones(9, dtype), "ema_weight": rng.standard_normal((9, 64)).astype(dtype)}
    return tensors


def write_file(path, tensors):
    writer = SafetensorsWriter(path, [(n, t.dtype, t.shape) for n, t in tensors.items()], {"format": "pt"})
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()


def write_folder(folder, tensors, config=None, files=1):
    """A released folder of one file or several with an index."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    names = sorted(tensors)
    weight_map = {}
    for part in range(files):
        file = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in names[part::files]})
        weight_map |= dict.fromkeys(names[part::files], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read_folder(folder):
    with open_released(folder) as found:
        return {name: found.read(name) for name in found.owner}, dict(found.owner)


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def own_config(name):
    return {"omnidiff": {"component": name, "config": to_dict(TINY[name])}}


OMNI_JSON = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
    "encoder_conf": {"attention_heads": 2},
}  # fmt: skip


def refused(tmp_path, match, source, **options):
    """Says so in one line, and leaves nothing behind."""
    with pytest.raises(UserError, match=match) as error:
        to_orbax(source, tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name], "something is left behind"
