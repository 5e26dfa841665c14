"""The nano model: all nine tasks and inpainting over the embedded Scenes world, on two CPU cores in an hour or two.

    omnidiff quickstart --workdir=DIR
    omnidiff train --config=experiments/configs/nano.py --workdir=DIR --config.total_steps=100

The same modules as `dream7b.py` under other numbers; tokenizers and the speech encoder are the shipped nano ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "omni"
    config.seed = 0
    config.batch_size = 8  # packed rows
    config.accumulate = 1  # microbatches a step
    config.total_steps = 0  # caps the curriculum, stages shrink in proportion; 0 = as planned below
    config.checkpoint_every = 400
    config.keep_checkpoints = 2
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.sharding = "fsdp"

    config.masking = "paper"  # or "released": a threshold per token
    # The paper's 0.6 makes long runs of masks a sign of long answers, and decoding begins with nothing else.
    config.tail_pad_gamma = 1.0
    # The paper draws from all of 0 to 1. A one-word answer teaches nothing while it is shown (docs/performance.md).
    config.min_noise = 0.5
    config.min_noise_of = ConfigDict()  # in its place, by source or task
    config.loss = ConfigDict({"weighting": "sample", "chunk": 512, "capacity": 1.0, "noise_buckets": 4})

    config.tokenizers = ConfigDict(
        {
            "text": "nano",
            "image": "nano",
            "speech_encoder": "nano",
            "speech_tokenizer": "nano",
            "speech_decoder": "nano",
            "user_image_size": 64,
            "assistant_image_size": 64,
        }
    )
    config.model = ConfigDict(
        {
            "width": 256,  # wide rather than deep: to look a word up takes two layers, and width (docs/performance.md)
            "layers": 4,
            "heads": 8,
            "kv_heads": 8,
            "head_dim": 32,
            "hidden": 512,
            "rope_theta": 1e3,
            "init_stddev": 0.06,
            "embed_stddev": 1.0,
            "residual_stddev": 0.02,
            "attention": "rows",
            "remat": "none",
            "scan_layers": False,
        }
    )
    config.optimizer = ConfigDict(
        {
            # What AdamW reaches in the same steps: docs/performance.md.
            "algorithm": "muon",
            "matrix_rate": 8.0,
            "newton_schulz_steps": 3,
            "b2": 0.95,
            "clip_norm": 1.0,
            "final_fraction": 0.05,
            "ema_decay": 0.0,
            "frozen": ("speech_encoder/*",),
        }
    )

    # Converted or trained weights to start from, and LoRA, as in dream7b.py.
    config.init = ConfigDict({"folder": "", "rows": 0, "new_rows": "mean", "stddev": 0.06, "seed": 0, "layers": "same"})
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ("backbone/layers/attention/*/kernel",)})
    # Six bits of form and four of colour, each with rows of its own (configs/tokenizers/image.py).
    config.image_factors = (6, 4)
    # Distinct training samples of each source; what is heard costs the most to make.
    examples = {
        "text_qa": 40000,
        "captioning": 12000,
        "vqa": 24000,
        "t2i": 20000,
        "asr": 4000,
        "tts": 6000,
        "spoken_qa": 6000,
        "s2i": 4000,
        "spoken_vqa": 7000,
    }
    # What is typed comes in plain words as often as in the world's grammar.
    plain = dict.fromkeys(("text_qa", "captioning", "vqa", "t2i"), 0.5)
    config.data = ConfigDict(
        {
            # Any name will do; one that is a task's is of that task (docs/data.md).
            "sources": {
                name: {"reader": "scenes", "examples": count, "plain": plain.get(name, 0.0)}
                for name, count in examples.items()
            },
            "set": "",  # "encoded" or "jsonl": every source is read from `folder` instead
            "folder": "",
            "length": 176,
            "frames": 176,
            "samples": 8,
            "open_rows": 16,
            "streams": 4,
            "max_tail_pads": 16,
        }
    )
    config.held_out = {"every": 0, "batches": 4, "examples": 32, "sources": {}}  # every: steps between measurements
    # The paper's curriculum. A small model learns to look things up only while a task has a good share of the batch, so
    # each stage leans on what is new; what came before stays in the mixture, or it would be unlearned.
    config.stages = ConfigDict(
        {
            "stage1_visual_language": ConfigDict(
                {
                    "steps": 2500,
                    "learning_rate": 1e-3,
                    "final_fraction": 0.5,
                    "weights": ConfigDict({"text_qa": 2.0, "captioning": 1.5, "vqa": 2.5, "t2i": 1.2}),
                }
            ),
            "stage2_speech_vision_language": ConfigDict(
                {
                    "steps": 2800,
                    "learning_rate": 1e-3,
                    "final_fraction": 0.5,
                    "weights": ConfigDict(
                        {
                            "text_qa": 1.5,
                            "captioning": 0.8,
                            "vqa": 1.5,
                            "t2i": 0.7,
                            "asr": 4.0,
                            "tts": 1.3,
                            "spoken_qa": 2.0,
                        }
                    ),
                }
            ),
            "stage3_speech_driven_visual": ConfigDict(
                {
                    "steps": 5700,
                    "learning_rate": 1e-3,
                    "final_fraction": 0.01,
                    "weights": ConfigDict(
                        {
                            "text_qa": 3.0,
                            "captioning": 0.8,
                            "vqa": 2.4,
                            "t2i": 0.6,
                            "asr": 0.5,
                            "tts": 0.4,
                            "spoken_qa": 1.8,
                            "s2i": 0.8,
                            "spoken_vqa": 2.4,
                        }
                    ),
                }
            ),
        }
    )
    config.decoding = decoding()
    config.fast = fast()
    return config


def decoding() -> ConfigDict:
    """Greedy; a step reveals whatever is surer than `least`: better than one token a step, in a tenth of the calls.

    Chosen on `scenes_tuning` (docs/nano.md).

    Speech is decoded in blocks from the left: a fifth of the words were wrong where it was filled in from everywhere
    (docs/performance.md).
    """
    greedy = {
        "steps_per_token": 1.0,
        "filters": ConfigDict({"temperature": 0.0, "top_p": 1.0, "top_k": 0}),
        "repetition": ConfigDict({"penalty": 1.0}),
        "position": ConfigDict({"form": "off"}),
        "guidance": ConfigDict({"scale": 0.0}),
        "candidates": "restricted",
    }

    def settings(length: int, block: int = 0, least: float = 0.5, **others: object) -> ConfigDict:
        reveal = ConfigDict({"kind": "threshold", "least": least})
        sampler = ConfigDict({**greedy, "blocks": ConfigDict({"size": block}), "reveal": reveal})
        return ConfigDict({"length": length, "sampler": sampler, "adaptive": None, "prefill": None, **others})

    return ConfigDict(
        {
            "text_qa": settings(8),
            "captioning": settings(20, least=0.3),
            "vqa": settings(8),
            "t2i": settings(0),
            # Heard speech is about four text tokens a second, at 12.5 units a second.
            "asr": settings(0, adaptive=ConfigDict({"rate": 0.4, "minimum": 10})),
            # A piece of the answering voice takes 4 to 7 codes.
            "tts": settings(0, block=16, adaptive=ConfigDict({"rate": 7.5, "minimum": 20})),
            "spoken_qa": settings(36, block=16),
            "s2i": settings(0, least=0.9),
            "spoken_vqa": settings(36, block=16, least=0.9),
            "inpainting": settings(0),
        }
    )


def fast() -> ConfigDict:
    """What differs with `--preset=fast`: two tasks that the gate passed with fewer calls (docs/performance.md)."""

    def least(value: float) -> ConfigDict:
        return ConfigDict({"sampler": ConfigDict({"reveal": ConfigDict({"least": value})})})

    return ConfigDict({"s2i": least(0.5), "inpainting": least(0.0)})
