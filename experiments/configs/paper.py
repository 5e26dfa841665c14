"""Omni-Diffusion on the corpora that the paper names, each a source with its reader (arXiv 2603.06577).

The paper gives no mixture. What is public stands here as epochs, how often the samples of a corpus count:

- speech: VITA-Audio, of the same group, trains on these very sets. Its first stage takes all once, Emilia half; its
  second a twentieth, Emilia a fortieth, spoken questions (VoiceAssistant, AudioQA) twice. The first is stage 2 here,
  where the paper has spoken questions too, once; the second is stage 3.
- pictures and text: the released config takes every source once. In stage 3 they are kept as speech is, and the two
  SDVI sets, which that stage is for, are taken once.

`paper.py` reads sets that were encoded before, in `data/NAME`; `paper.py:raw` the corpora themselves in `corpora/NAME`,
encoded while training. Common Voice, GigaSpeech, Emilia and JourneyDB are not free of terms: `docs/data.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import dream7b

# Source -> (reader, task, further fields), in the order of the stages.
SOURCES = {
    "tulu3": ("tulu3", "text_qa", {}),
    "laion": ("laion", "captioning", {}),
    "journeydb": ("journeydb", "t2i", {}),
    "llava_onevision": ("llava_onevision", "vqa", {}),
    "librispeech": ("librispeech", "asr", {}),
    "common_voice": ("common_voice", "asr", {}),
    "gigaspeech": ("gigaspeech", "asr", {"split": "XL"}),
    "peoples_speech": ("peoples_speech", "asr", {}),
    "voxpopuli": ("voxpopuli", "asr", {}),
    "libritts": ("libritts", "tts", {}),
    "globe": ("globe", "tts", {}),
    "emilia": ("emilia", "tts", {}),
    "voiceassistant": ("voiceassistant", "spoken_qa", {}),
    "audioqa": ("audioqa", "spoken_qa", {}),
    "sdvi_vqa": ("jsonl", "spoken_vqa", {"path": "corpora/sdvi/spoken_vqa/data.jsonl"}),
    "sdvi_t2i": ("jsonl", "s2i", {"path": "corpora/sdvi/s2i/data.jsonl"}),
}
LOOKED_AT = {"tulu3": 1.0, "laion": 1.0, "journeydb": 1.0}
HEARD = dict.fromkeys(
    ("librispeech", "common_voice", "gigaspeech", "peoples_speech", "voxpopuli", "libritts", "globe"), 1.0
) | {"emilia": 0.5}
ASKED = {"voiceassistant": 1.0, "audioqa": 1.0}
KEPT = 0.05


def get_config(form: str = "encoded") -> ConfigDict:
    config = dream7b.base()
    sources = {}
    for name, (reader, task, further) in SOURCES.items():
        sources[name] = {"reader": reader, "task": task, "path": f"corpora/{name}"} | further
    config.data.sources = ConfigDict(sources)
    config.data.set = {"encoded": "encoded", "raw": ""}[form]
    if form == "raw":
        config.data.workers = 8
    shown = LOOKED_AT | {"llava_onevision": 1.0}
    epochs = {
        "stage1_visual_language": LOOKED_AT,
        "stage2_speech_vision_language": shown | HEARD | ASKED,
        "stage3_speech_driven_visual": {
            name: KEPT * times for name, times in (shown | HEARD).items() if name != "laion"
        }
        | dict.fromkeys(ASKED, 2.0)
        | {"sdvi_vqa": 1.0, "sdvi_t2i": 1.0},
    }
    for name, stage in config.stages.items():
        stage.weights = ConfigDict()
        stage.epochs = ConfigDict(epochs[name])
    return config
