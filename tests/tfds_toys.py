"""TFDS version folders for tests: TFDS itself needs TensorFlow to write one."""

import json
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

Values = list[int] | list[str] | list[bytes]


def write_tfds(folder: Path, name: str, features: Any, examples: list[dict[str, Values]]) -> None:
    """`folder` with one split, "train", in one shard; an example maps the flat name of a feature to its values."""
    folder.mkdir(exist_ok=True)
    features.save_config(str(folder))
    files = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": [str(len(examples))], "numBytes": "9", "filepathTemplate": files}
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    writer = ArrayRecordWriter(str(folder / f"{name}-train.array_record-00000-of-00001"), "group_size:1")
    for example in examples:
        made = tf_example_pb2.Example()
        for key, values in example.items():
            feature = made.features.feature[key]
            if values and isinstance(values[0], int):
                feature.int64_list.value.extend(values)
            else:  # an empty list is of bytes, as TFDS writes it
                feature.bytes_list.value.extend(
                    value if isinstance(value, bytes) else str(value).encode() for value in values
                )
        writer.write(made.SerializeToString())
    writer.close()
