"""Scenes as a TFDS data set in ArrayRecord form, one builder config per task.

    pip install 'omnidiff_jax[build]'
    python -m data_pipelines.tfds_builders.scenes --config=vqa --data_dir=DIR
    python -m data_pipelines.tfds_builders.scenes --config=vqa --data_dir=gs://… --beam_runner=DataflowRunner -- …

Examples are made by Apache Beam, on any of its runners; what follows `--` are the runner's options. TensorFlow and Beam
are needed to write only: `omnidiff_jax.data.sources.TfdsRecords(DIR/scenes/vqa/VERSION, "train", to_record)`
reads the set without it.
"""

import argparse
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds

from data_pipelines.scenes.tasks import TASKS, VERSION, make_record
from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.records import Message, Record, Waveform


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """One task's set: the task, and how many examples each split has."""

    task: str = "text_qa"
    train: int = 10_000
    test: int = 500
    compositional: int = 500


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Coloured shapes with captions, questions and speech, made from nothing but an index."""

    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    RELEASE_NOTES = {f"{VERSION}.0.0": "Records of this version of the Scenes world."}
    BUILDER_CONFIGS = [ScenesConfig(name=task, description=f"records of the task {task}", task=task) for task in TASKS]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features())

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        return {
            split: self._generate_examples(split, getattr(config, split))
            for split in ("train", "test", "compositional")
        }

    def _generate_examples(self, split: str, count: int) -> Any:
        import apache_beam as beam

        return beam.Create(range(count)) | beam.Map(_numbered_example, task=self.builder_config.task, split=split)


def features() -> tfds.features.FeaturesDict:
    """What an example holds: a whole `Record`."""
    return tfds.features.FeaturesDict(
        {
            "sample_id": tfds.features.Scalar(np.int64),
            "task": tfds.features.Text(),
            "messages": tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()}),
            "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="png")),
            "audios": tfds.features.Sequence(tfds.features.Text(doc="16-bit PCM wav files")),
            "holes": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 1), encoding_format="png", doc="one of inpainting, light inside")
            ),
            "meta": tfds.features.Text(doc="JSON for judges, never seen by a model"),
        }
    )


def _numbered_example(index: int, task: str, split: str) -> tuple[int, dict[str, Any]]:
    return index, to_example(make_record(task, index, split))


def download_config(runner: str, options: Sequence[str] = ()) -> tfds.download.DownloadConfig:
    """How `download_and_prepare` runs: the name of a Beam runner, and its command-line options."""
    from apache_beam.options.pipeline_options import PipelineOptions

    return tfds.download.DownloadConfig(beam_runner=runner, beam_options=PipelineOptions(list(options)))


def to_example(record: Record) -> dict[str, Any]:
    """A record, its media loaded, as the builder's features."""
    return {
        "sample_id": record.sample_id,
        "task": record.task,
        "messages": [dataclasses.asdict(message) for message in record.messages],
        "images": list(record.images),
        "audios": [wav_bytes(waveform) for waveform in record.audios],
        "holes": [] if record.hole is None else [np.uint8(255) * record.hole[..., None]],
        "meta": json.dumps(record.meta, sort_keys=True),
    }


def to_record(example: Mapping[str, Any]) -> Record:
    """What `to_example` made, or what TFDS read from disk."""
    messages = example["messages"]
    if isinstance(messages, Mapping):  # TFDS turns a sequence of dictionaries into a dictionary of sequences
        messages = [
            {"role": role, "content": content}
            for role, content in zip(messages["role"], messages["content"], strict=True)
        ]
    holes = example["holes"]
    return Record(
        int(example["sample_id"]),
        _text(example["task"]),
        tuple(Message(_text(message["role"]), _text(message["content"])) for message in messages),
        tuple(example["images"]),
        tuple(_waveform(data) for data in example["audios"]),
        json.loads(_text(example["meta"])),
        holes[0][..., 0] > 127 if len(holes) else None,
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _waveform(data: bytes) -> Waveform:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    return Waveform(samples, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=TASKS, required=True, help="task")
    parser.add_argument("--data_dir", required=True, help="folder of TFDS data sets")
    parser.add_argument("--beam_runner", default="DirectRunner", help="of Apache Beam (default: this machine)")
    parser.add_argument("beam_options", nargs="*", help="options of the runner, after --")
    arguments = parser.parse_args()
    builder = Scenes(config=arguments.config, data_dir=arguments.data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=download_config(arguments.beam_runner, arguments.beam_options))
    print(builder.info)


if __name__ == "__main__":
    main()
