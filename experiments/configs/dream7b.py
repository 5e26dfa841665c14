"""Omni-Diffusion at its released size: the Dream-7B backbone, 3072-token rows, 128 rows a step (arXiv 2603.06577).

Tokenizers are folders converted from the released weights (`omnidiff convert`); `data.set` names encoded sets.
`dream7b.py:v5p:4x4x4` is this config with the preset of that slice (`slices.py`).
"""

from ml_collections import ConfigDict

from experiments.configs import operations, slices, stages


def get_config(slice_name: str = "") -> ConfigDict:
    config = base()
    return slices.apply(config, "dream7b", slice_name) if slice_name else config


def base() -> ConfigDict:
    """Without a preset: parameters over all devices, attention that runs anywhere."""
    config = ConfigDict()
    config.program = "omni"
    config.seed = 0
    config.batch_size = 128
    config.accumulate = 1
    config.total_steps = 0
    config.checkpoint_every = 500
    config.keep_checkpoints = 3
    config.keep_period = 5000  # these are kept for good
    config.operations = operations.get_config()
    config.compilation_cache = ""  # a folder; "" = JAX_COMPILATION_CACHE_DIR, or the user's cache
    config.dtype = "bfloat16"
    config.slice = ""  # of the preset, if one was chosen
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.mesh.dcn = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1})  # between slices or nodes
    config.sharding = "fsdp"

    config.masking = "paper"
    config.tail_pad_gamma = 0.6
    config.min_noise = 1e-3
    config.loss = ConfigDict({"weighting": "none", "chunk": 1024, "capacity": 1.0, "noise_buckets": 10})

    config.tokenizers = ConfigDict(
        {
            "text": "weights/dream7b",
            "image": "weights/magvitv2",
            "speech_encoder": "weights/sensevoice_small",
            "speech_tokenizer": "weights/glm4voice_tokenizer",
            "speech_decoder": "weights/glm4voice_decoder",
            "user_image_size": 512,
            "assistant_image_size": 256,
        }
    )
    config.model = ConfigDict(
        {
            "width": 3584,
            "layers": 28,
            "heads": 28,
            "kv_heads": 4,
            "head_dim": 128,
            "hidden": 18944,
            "rope_theta": 1e6,
            "init_stddev": 0.02,
            "attention": "chunked",
            "remat": "full",
            "scan_layers": True,
        }
    )
    config.optimizer = ConfigDict(
        {
            "b2": 0.95,
            "clip_norm": 1.0,
            "final_fraction": 0.0,
            "ema_decay": 0.0,
            "frozen": ("speech_encoder/*",),
            "moment_dtype": "float32",
            "second_moment_dtype": "float32",
            "moments_on": "device",
        }
    )
    # A converted checkpoint to start from (`omnidiff convert`); ids from `rows` on are new. "" = fresh parameters.
    config.init = ConfigDict(
        {"folder": "", "rows": 151667, "new_rows": "mean", "stddev": 0.02, "seed": 0, "layers": "same"}
    )
    # Rank above 0: the backbone is frozen but for thin products. The adapter trains unless `frozen` names it.
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ("backbone/layers/attention/*/kernel",)})
    config.data = ConfigDict(
        {
            "set": "encoded",
            "folder": "data",
            "length": 3072,
            "frames": 1536,
            "samples": 96,
            "open_rows": 24,
            "streams": 64,
            "max_tail_pads": 16,
        }
    )
    config.held_out = {"every": 0, "batches": 4, "sources": {}}  # every: steps between measurements
    config.stages = stages.get_config()
    return config
