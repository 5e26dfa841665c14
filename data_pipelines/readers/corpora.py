"""The corpora: where each keeps what, in its layouts, by licence and language. A new one is a row of `CORPORA`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_pipelines.readers import annotated
from data_pipelines.readers.layouts import folder, json_lines, table, tars
from data_pipelines.readers.parquet import parquet
from data_pipelines.readers.records import Rows

Layout = Callable[[Path, str], "Rows | None"]
_EXAMS = ("test", "dev", "validation", "val")
_SPOKEN = ("trimmed",)
_CAPITALS = ("lower", "trimmed")
_GIGASPEECH = ("no_garbage", "marks", "lower", "trimmed")
_PICTURES = "jpg|jpeg|png|webp"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One of the forms that a corpus comes in.

    Attributes:
        layout: (root, split) -> rows, or None where no file is of this form.
        columns: field -> column (`records.Form`).
        media: folder of the media in the root, where paths are told from there.
    """

    layout: Layout
    columns: Mapping[str, str]
    media: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A row of the table.

    Attributes:
        summary: one line for people.
        licence: as its card says, with what binds beyond.
        languages: of its speech or text.
        task: that it trains unless the config says another; "" = as each record amounts to.
        layers: its forms, the first that fits is read.
        rules: of text (`text.RULES`) that hold unless the config switches them.
        exams: how names of splits begin that are test data of known benchmarks.
    """

    summary: str
    licence: str
    languages: str
    task: str
    layers: Sequence[Layer]
    rules: Sequence[str] = _SPOKEN
    exams: Sequence[str] = _EXAMS


def _lines(pattern: str) -> Layout:
    return functools.partial(_json, pattern)


def _json(pattern: str, root: Path, split: str) -> Rows | None:
    return json_lines(root, pattern)


def _table(root: Path, split: str) -> Rows | None:
    return table(root, "*.tsv") or table(root, "*.csv") or table(root, "*.tsv.gz") or table(root, "*.csv.gz")


_HEARD = {"audio": "audio", "text": "text"}
CORPORA: Mapping[str, Corpus] = {
    "librispeech": Corpus(
        "LibriSpeech: split/speaker/chapter/*.flac with .trans.txt, or its parquet",
        "CC-BY-4.0",
        "en",
        "asr",
        (
            Layer(annotated.librispeech, _HEARD | {"id": "id", "speaker": "speaker_id"}),
            Layer(parquet, _HEARD | {"id": "id", "speaker": "speaker_id"}),
        ),
        _CAPITALS,
    ),
    "libritts": Corpus(
        "LibriTTS and LibriTTS-R: split/speaker/chapter/*.wav with .normalized.txt, or its parquet",
        "CC-BY-4.0",
        "en",
        "tts",
        tuple(
            Layer(layout, {"audio": "audio", "text": "text_normalized", "id": "id", "speaker": "speaker_id"})
            for layout in (annotated.libritts, parquet)
        ),
    ),
    "common_voice": Corpus(
        "Common Voice: locale/split.tsv with clips/",
        "CC0-1.0",
        "by locale",
        "asr",
        (Layer(annotated.common_voice, {"audio": "audio", "text": "sentence", "id": "path", "language": "locale"}),),
    ),
    "gigaspeech": Corpus(
        "GigaSpeech: segments of long recordings by GigaSpeech.json, or its parquet",
        "non-commercial research",
        "en",
        "asr",
        (
            Layer(annotated.gigaspeech, _HEARD | {"id": "segment_id", "start": "begin_time", "end": "end_time"}),
            Layer(parquet, _HEARD | {"id": "segment_id"}),
        ),
        _GIGASPEECH,
    ),
    "voxpopuli": Corpus(
        "VoxPopuli: stretches of sessions by asr_LANG.tsv.gz, or its parquet",
        "CC0-1.0, with the European Parliament's terms",
        "16 of the European Union",
        "asr",
        (
            Layer(
                annotated.voxpopuli,
                {
                    "audio": "audio",
                    "text": "normed_text",
                    "id": "session_id",
                    "start": "start_time",
                    "end": "end_time",
                    "language": "language",
                },
            ),
            Layer(parquet, {"audio": "audio", "text": "normalized_text", "id": "audio_id"}),
        ),
    ),
    "peoples_speech": Corpus(
        "People's Speech: its parquet (clean, clean_sa, dirty, dirty_sa)",
        "CC-BY and CC-BY-SA",
        "en",
        "asr",
        (Layer(parquet, _HEARD | {"id": "id", "duration": "duration_ms"}),),
    ),
    "emilia": Corpus(
        "Emilia: tars of mp3 and json, or jsonl with folders",
        "CC-BY-NC-4.0",
        "zh, en, ja, ko, de, fr",
        "tts",
        (
            Layer(tars, {"audio": "mp3", "text": "json.text", "id": "json.id", "language": "json.language"}),
            Layer(_lines("*.jsonl"), {"audio": "wav", "text": "text", "id": "id", "language": "language"}),
        ),
    ),
    "globe": Corpus(
        "GLOBE and GLOBE V2: its parquet; clips are Common Voice's",
        "CC0-1.0",
        "en",
        "tts",
        (Layer(parquet, {"audio": "audio", "text": "transcript", "speaker": "speaker_id"}),),
    ),
    "tulu3": Corpus(
        "Tulu-3 SFT: its parquet of messages",
        "ODC-BY-1.0; some sources are non-commercial",
        "about 70",
        "text_qa",
        (Layer(parquet, {"messages": "messages", "id": "id"}),),
    ),
    "llava_onevision": Corpus(
        "LLaVA-OneVision: parquet of conversations with an image or none, a folder a subset",
        "Apache-2.0; sources differ",
        "en, zh",
        "",
        (Layer(parquet, {"messages": "conversations", "image": "image", "id": "id"}),),
    ),
    "journeydb": Corpus(
        "JourneyDB: train_anno_realease_repath.jsonl with imgs/, or its mirror's tars of jpg and txt",
        "research only, not to be passed on",
        "en",
        "t2i",
        (
            Layer(_lines("train_anno*.jsonl"), {"image": "img_path", "text": "prompt"}, "imgs"),
            Layer(tars, {"image": _PICTURES, "text": "txt"}),
        ),
    ),
    "laion": Corpus(
        "LAION subsets that img2dataset fetched: tars of jpg, txt and json",
        "CC-BY-4.0 for the list; pictures are their owners'",
        "en",
        "t2i",
        (Layer(tars, {"image": _PICTURES, "text": "json.caption", "id": "json.key"}),),
    ),
    "voiceassistant": Corpus(
        "VoiceAssistant-400K: its parquet; answers are text, their speech lies there as codes of another codec",
        "Apache-2.0",
        "en",
        "spoken_qa",
        (Layer(parquet, {"audio": "question_audio", "answer": "answer", "id": "index"}),),
    ),
    "audioqa": Corpus(
        "AudioQA-1M: a list of messages with the paths of their waves",
        "none is stated",
        "zh, en",
        "spoken_qa",
        (Layer(_lines("*.json*"), {"messages": "messages"}),),
    ),
    "coco": Corpus(
        "COCO captions: annotations/captions_SPLIT.json with pictures",
        "CC-BY-4.0 for captions; pictures are Flickr users'",
        "en",
        "captioning",
        (Layer(annotated.coco, {"image": "image", "text": "caption", "id": "id"}),),
    ),
    "folder": Corpus(
        "images or recordings with a .txt of the same name beside each",
        "yours",
        "any",
        "",
        (Layer(folder, {"text": "text", "image": "image", "audio": "audio", "id": "id"}),),
        exams=(),
    ),
    "parquet": Corpus(
        "parquet with columns that the config names", "yours", "any", "", (Layer(parquet, {}),), exams=()
    ),
    "tar": Corpus("tar shards with members that the config names", "yours", "any", "", (Layer(tars, {}),), exams=()),
    "table": Corpus(
        "tsv or csv with columns that the config names", "yours", "any", "", (Layer(_table, {}),), exams=()
    ),
    "json_lines": Corpus(
        "JSON lines with keys that the config names", "yours", "any", "", (Layer(_lines("*.jsonl"), {}),), exams=()
    ),
}
