"""What a checkpoint is, told by its tensors and configs: nothing missing, left over, invented or contradicted."""

import json

import numpy as np
import pytest
from released_toys import (
    OMNI_JSON,
    own_config,
    refused,
    released_tensors,
    write_file,
    write_folder,
)

from omnidiff_jax.conversion.arrays import ABOUT
from omnidiff_jax.conversion.components import recognise
from omnidiff_jax.conversion.to_orbax import to_orbax
from omnidiff_jax.conversion.to_released import to_released
from omnidiff_jax.errors import UserError

FLOW_YAML = """
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_frame_rate: 25
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        block_size: 7
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {solver: euler, t_scheduler: cosine, inference_cfg_rate: 0.5}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            attention_head_dim: 16
            num_heads: 4
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    sampling_rate: 16000
    upsample_rates: [4, 8]
    resblock_dilation_sizes: [[1, 2, 4], [1, 2, 4], [1, 2, 4]]
    audio_limit: 0.9
    istft_params: {n_fft: 16, hop_len: 8}
"""


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    tensors = released_tensors("adapter")
    del tensors["mlp.2.weight"]
    source = write_folder(tmp_path / "a", tensors)
    refused(tmp_path, r"lacks 1 tensors: mlp\.2\.weight", source)
    (source / "model.safetensors").unlink()
    extra = {"mlp.4.weight": np.ones((2, 2), np.float32)}
    write_file(source / "model.safetensors", released_tensors("adapter") | extra)
    refused(tmp_path, r"1 tensors have no rule .*mlp\.4\.weight", source)


def test_a_missing_layer_is_named(tmp_path):
    tensors = {n: t for n, t in released_tensors("omni").items() if ".layers.1." not in n}
    refused(tmp_path, "lacks layer 1 of the stack", write_folder(tmp_path / "a", tensors, OMNI_JSON))


def test_a_wrong_shape_is_named(tmp_path):
    tensors = released_tensors("omni") | {"lm_head.weight": np.zeros((41, 16), np.float32)}
    source = write_folder(tmp_path / "a", tensors, OMNI_JSON)
    refused(tmp_path, r"'lm_head\.weight' has shape \[41, 16\] where the config says \[40, 16\]", source)


def test_unknown_tensors_are_refused(tmp_path):
    source = write_folder(tmp_path / "a", {"what.weight": np.ones(3, np.float32)})
    refused(tmp_path, r"no known checkpoint has these tensors \(what\.weight", source)
    refused(tmp_path, "did you mean 'magvit'", source, component="magvitt")
    assert recognise(["model.embed_tokens.weight"]).name == "omni"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (None, r"config\.json is missing, and tensors do not tell the number of attention heads, rope_theta"),
        ({"hidden_size": None}, "config.json says nothing of the backbone"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantization_config says .*quantized \(gptq\)",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling = .* is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta = 1000000.0 is not supported; only 500000.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True is not supported"),
        ({"num_attention_heads": 2}, "has shape"),
        ({"num_attention_heads": 0}, "heads = 0 must be at least 1"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0 must be above 0"),
        ({"rms_norm_eps": float("nan")}, "norm_epsilon = nan must be a finite number"),
    ],
)
def test_an_architecture_is_not_invented(tmp_path, change, match):
    config = None if change is None else {k: v for k, v in (OMNI_JSON | change).items() if v is not None}
    refused(tmp_path, match, write_folder(tmp_path / "a", released_tensors("omni"), config))


@pytest.mark.parametrize("rope", [{"rope_theta": 2e4}, {"rope_theta": None, "rope_parameters": {"rope_theta": 2e4}}])
def test_rope_is_read_where_it_stands(tmp_path, rope):
    config = {k: v for k, v in (OMNI_JSON | rope).items() if v is not None}
    summary = to_orbax(write_folder(tmp_path / "a", released_tensors("omni"), config), tmp_path / "b")
    assert json.loads((tmp_path / "b" / ABOUT).read_text())["config"]["backbone"]["rope_theta"] == 2e4
    assert summary.assumed == {}


def test_what_nobody_tells_is_named(tmp_path, omnidiff):
    """In the summary, in one line of the command, and in the config that is written for the next reader."""
    config = {k: v for k, v in OMNI_JSON.items() if k not in ("rope_theta", "rms_norm_eps", "encoder_conf")}
    source = write_folder(tmp_path / "a", released_tensors("omni"), config)
    guessed = {"backbone.norm_epsilon": 1e-6, "backbone.rope_theta": 1e6, "speech_encoder.heads": 4}
    assert to_orbax(source, tmp_path / "b").assumed == guessed
    assert json.loads((tmp_path / "b" / ABOUT).read_text())["assumed"] == guessed
    (tmp_path / "b" / "released_files" / "config.json").unlink()
    to_released(tmp_path / "b", tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["omnidiff"]["assumed"] == guessed
    assert to_orbax(tmp_path / "c", tmp_path / "d").assumed == guessed, "it is not forgotten on the way"
    done = omnidiff("convert", "--from=released", "--to=orbax", source, tmp_path / "e")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("convert: ")]
    assert "neither tensors nor config tell backbone.norm_epsilon = 1e-06, backbone.rope_theta = 1000000.0" in line


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "omni",
            {"rope_theta": 1e4},
            r"rope_theta = 10000\.0, but backbone.rope_theta = 1000000\.0 in its omnidiff group",
        ),
        ("omni", {"num_attention_heads": 8}, "num_attention_heads = 8, but backbone.heads = 4"),
        ("omni", {"encoder_conf": {"attention_heads": 8}}, "encoder_conf.attention_heads = 8, but"),
        ("omni", {"rope_scaling": {"factor": 2}}, "rope_scaling = .* is not supported"),
        ("omni", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ("whisper_vq", {"encoder_attention_heads": 2}, "encoder_attention_heads = 2, but heads = 1"),
    ],
)
def test_a_config_may_not_contradict_itself(tmp_path, name, change, match):
    """A folder that was exported here says its sizes twice; whoever edits one is told of the other."""
    tensors = released_tensors(name)
    source = write_folder(tmp_path / "a", tensors, own_config(name))
    to_orbax(source, tmp_path / "b")
    (tmp_path / "b" / "released_files" / "config.json").unlink()
    to_released(tmp_path / "b", tmp_path / "c")
    exported = tmp_path / "c" / "config.json"
    to_orbax(tmp_path / "c", tmp_path / "d")
    exported.write_text(json.dumps(json.loads(exported.read_text()) | change))
    with pytest.raises(UserError, match=match):
        to_orbax(tmp_path / "c", tmp_path / "e")


def test_speech_decoders_take_from_their_yaml_what_shapes_do_not_tell(tmp_path):
    configs = {}
    for name in ("flow", "hift"):
        source = write_folder(tmp_path / f"{name}_released", released_tensors(name))
        (source / "config.yaml").write_text(FLOW_YAML)
        to_orbax(source, tmp_path / name)
        configs[name] = json.loads((tmp_path / name / ABOUT).read_text())["config"]
    flow, hift = configs["flow"], configs["hift"]
    assert flow["code_rate"] == 25 and flow["guidance"] == 0.5 and flow["encoder"]["block_size"] == 7
    assert (flow["estimator"]["heads"], flow["estimator"]["head_dim"]) == (4, 16)
    assert flow["drop_rate"] == 0.2, "what the file leaves out is as released"
    assert hift["sample_rate"] == 16000 and hift["upsample_rates"] == [4, 8] and hift["limit"] == 0.9
    assert hift["hop"] == 8 and hift["resblock_dilations"] == [[1, 2, 4]] * 3 and hift["slope"] == 0.1


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (("solver: euler", "solver: midpoint"), "cfm_params: solver = 'midpoint' is not supported"),
        (("num_heads: 4", "num_heads: 3"), "64 wide, which is not 3 heads of 16"),
    ],
)
def test_speech_decoders_of_another_kind_are_refused(tmp_path, changed, match):
    source = write_folder(tmp_path / "a", released_tensors("flow"))
    (source / "config.yaml").write_text(FLOW_YAML.replace(*changed))
    refused(tmp_path, match, source)
