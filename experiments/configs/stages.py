"""The three-stage curriculum of the paper: what each stage trains on (arXiv 2603.06577), as mixture weights over tasks.

Sources of the released model by task: text QA Tulu-3; captioning LAION; text-to-image JourneyDB; VQA LLaVA-OneVision;
ASR LibriSpeech, CommonVoice, GigaSpeech, People's Speech, VoxPopuli; TTS LibriTTS, GLOBE, Emilia; speech QA
VoiceAssistant, AudioQA; SDVI 30k spoken VQA and 30k speech-to-image. The paper gives no mixture weights: tasks of a
stage are weighed alike here.
"""

from ml_collections import ConfigDict

STAGE1 = ("text_qa", "captioning", "t2i")
STAGE2 = (*STAGE1, "vqa", "asr", "tts", "spoken_qa")
STAGE3 = ("text_qa", "vqa", "t2i", "asr", "tts", "spoken_qa", "spoken_vqa", "s2i")


def get_config() -> ConfigDict:
    """Stages with the paper's learning rates; steps are per stage, at 128 sequences of 3072 tokens each."""

    def stage(steps: int, learning_rate: float, tasks: tuple[str, ...]) -> ConfigDict:
        weights = ConfigDict(dict.fromkeys(tasks, 1.0))
        return ConfigDict({"steps": steps, "learning_rate": learning_rate, "weights": weights})

    return ConfigDict(
        {
            "stage1_visual_language": stage(10000, 1e-4, STAGE1),
            "stage2_speech_vision_language": stage(20000, 1e-4, STAGE2),
            "stage3_speech_driven_visual": stage(4000, 1e-5, STAGE3),
        }
    )
