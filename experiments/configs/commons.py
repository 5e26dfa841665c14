"""The real things of Commons through the three stages, on two CPU cores in two to three hours.

    omnidiff data fetch commons COMMONS
    omnidiff train --config=experiments/configs/commons.py --workdir=DIR \
        --config.data.sources.text_qa.path=COMMONS \
        --config.tokenizers.text=TEXT/export --config.tokenizers.image=IMAGE/export

The path of one source is that of all. Who speaks stands in COMMONS/clips/speech.json (docs/commons.md). Tokenizers are
folders; those of nano stand in for what has not been trained yet. `commons.py:miniature` and `commons.py:gpu` are the
same with a preset of `commons_presets.py`; `omnidiff commons` trains it all.
"""

from ml_collections import ConfigDict, FieldReference

from experiments.configs import commons_presets, nano

# Distinct training samples of each source; what is spoken is joined of few clips.
EXAMPLES = {
    "text_qa": 12000,
    "captioning": 16000,
    "vqa": 24000,
    "t2i": 8000,
    "asr": 8000,
    "tts": 3000,
    "spoken_qa": 6000,
    "s2i": 6000,
    "spoken_vqa": 8000,
}


def get_config(preset: str = "") -> ConfigDict:
    config = nano.get_config()
    config.model.width = 320
    config.model.layers = 4
    config.model.heads = config.model.kv_heads = 10
    config.model.hidden = 640
    config.image_factors = ()  # codes of its tokenizer have no parts of their own
    config.image_bits = 0.8  # those that look alike differ in few bits (docs/commons.md)
    config.data.length = config.data.frames = 288  # 64 codes are looked at, or drawn

    path = FieldReference("commons")  # one value for all
    share = commons_presets.SHARES.get(preset, 1.0)
    config.data.sources = ConfigDict(
        {name: {"reader": "commons", "examples": int(count * share), "path": path} for name, count in EXAMPLES.items()}
    )
    # The curriculum of nano: each stage leans on what is new.
    first = {"text_qa": 1.5, "captioning": 2.0, "vqa": 2.5, "t2i": 1.5}
    second = {"text_qa": 1.0, "captioning": 1.0, "vqa": 1.5, "t2i": 1.0, "asr": 3.0, "tts": 1.5, "spoken_qa": 2.0}
    third = second | {"asr": 1.0, "tts": 0.6, "s2i": 1.0, "spoken_vqa": 2.5}
    config.stages = ConfigDict(
        {
            "stage1_visual_language": _stage(3000, first, 0.5),
            "stage2_speech_vision_language": _stage(3000, second, 0.5),
            "stage3_speech_driven_visual": _stage(4000, third, 0.01),
        }
    )
    config.decoding = decoding()
    config.fast = ConfigDict()  # nothing was measured
    return commons_presets.apply(config, "commons", preset)


def decoding() -> ConfigDict:
    """Nano's, in the lengths of what is said here: names of at most 8 pieces of text, answers of 31 codes, 13 pieces of
    text heard in 2 to 53 units (docs/commons.md). Pictures are 64 codes, of which only what is sure is drawn at once.
    """
    settings = nano.decoding()
    for task in ("text_qa", "captioning", "vqa"):
        settings[task].length = 12
    for task in ("spoken_qa", "spoken_vqa"):
        settings[task].length = 56
    settings.asr.adaptive.update({"rate": 0.5, "minimum": 16})
    for task in ("t2i", "s2i", "inpainting"):
        settings[task].sampler.reveal.least = 0.9
    return settings


def _stage(steps: int, weights: dict[str, float], final_fraction: float) -> ConfigDict:
    return ConfigDict(
        {"steps": steps, "learning_rate": 1e-3, "final_fraction": final_fraction, "weights": ConfigDict(weights)}
    )
