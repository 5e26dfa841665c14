"""The nano speech decoder: codes of the nano speech tokenizer to 80-bin log-mel at 22.05 kHz, then Griffin-Lim.

    omnidiff train --config=experiments/configs/tokenizers/speech_decoder.py --workdir=DIR

One voice, so no speaker vectors, no prompts, and codes that leave no doubt about the sound: it is decoded from zero
noise and without guidance, which 80 channels could not take out of 80 mel bins again. For the released sizes take
`FlowConfig`'s and `HiftConfig`'s defaults.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.program = "speech_decoder"
    config.seed = 0
    config.batch_size = 16  # utterances
    config.accumulate = 1
    config.total_steps = 0  # caps the run; 0 = as planned below
    config.checkpoint_every = 1000
    config.keep_checkpoints = 1
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.stages = ConfigDict({"train": ConfigDict({"steps": 1200, "learning_rate": 2e-3})})
    config.optimizer = ConfigDict({"b2": 0.95, "clip_norm": 1.0, "final_fraction": 0.01, "frozen": ()})

    config.speech_tokenizer = "nano"  # or a folder: whose codes are learned
    config.training = ConfigDict(
        {
            "crop_codes": 32,
            "utterances": 800,
            "prompt_rate": 0.0,
            "validation_size": 100,
            "model": ConfigDict(
                {
                    "hift": None,
                    "griffin_lim_iterations": 12,
                    "flow": ConfigDict(
                        {
                            "codes": 512,
                            "speaker_dim": 8,
                            "mel_mean": -6.0,
                            "mel_std": 2.5,
                            "steps": 4,
                            "temperature": 0.0,
                            "guidance": 0.0,
                            "encoder": ConfigDict({"width": 96, "heads": 4, "hidden": 192, "layers": 1}),
                            "estimator": ConfigDict(
                                {
                                    "channels": (80, 80),
                                    "mid_blocks": 1,
                                    "transformers": 1,
                                    "heads": 2,
                                    "head_dim": 32,
                                    "expansion": 2,
                                }
                            ),
                        }
                    ),
                }
            ),
        }
    )
    return config
