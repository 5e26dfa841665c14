"""Rows of tables and lists: parquet by split and row group, whatever it raises; JSON lists of any size."""

import io
import json

import corpora
import pytest
from corpora import opened, with_peak
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.readers import parquet as parquet_rows
from data_pipelines.readers import streamed
from data_pipelines.readers.index import FAULT
from data_pipelines.readers.parquet import ParquetRows
from data_pipelines.readers.streamed import elements
from omnidiff_jax.data.sources import Source
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import RejectedRecord

pytestmark = pytest.mark.usefixtures("own_cache")


def test_parquet_of_a_whole_download_is_read_by_its_split(tmp_path):
    """As the Hub keeps them: by folder, by name, by what the automatic conversion calls a part."""
    row = {"audio": corpora.cell(corpora.sound_bytes(300)), "id": "i", "speaker_id": "s"}
    for split in ("train.clean.100", "train.other.500", "validation.clean", "test.clean"):
        rows = [row | {"text": split, "text_normalized": split}]
        corpora.parquet(tmp_path / "named" / "clean" / f"{split}-00000-of-00001.parquet", rows)
        corpora.parquet(tmp_path / "folders" / "all" / split / "0000.parquet", rows)
        corpora.parquet(tmp_path / "partial" / "en" / f"partial-{split}" / "0000.parquet", rows)
        corpora.parquet(tmp_path / "last" / f"librispeech-{split}.parquet", rows)
    for reader in ("librispeech", "libritts"):
        for home in ("named", "folders", "partial", "last"):
            for split, count in (("train", 2), ("train.clean.100", 1), ("test", 1)):
                records = opened(reader, tmp_path / home, split=split)
                assert len(records) == count, (home, split)
    with pytest.raises(UserError, match="nothing of split 'dev'"):
        opened("librispeech", tmp_path / "named", split="dev")


def test_a_parquet_group_is_decoded_once_for_all_rows_read_near_each_other(tmp_path, monkeypatch):
    rows = [{"text": f"t{n}", "other": "x" * 4096} for n in range(400)]
    corpora.parquet(tmp_path / "a.parquet", rows, group=20)
    reads = []
    monkeypatch.setattr(
        ParquetRows, "_read", lambda self, group, read=ParquetRows._read: reads.append(group) or read(self, group)
    )
    records = opened("parquet", tmp_path, columns={"text": "text"})
    source, streams = Source(records, "text_qa"), 4
    monkeypatch.setattr(parquet_rows, "_held", parquet_rows._Held())
    monkeypatch.setattr(parquet_rows, "_HELD_BYTES", 9 * 20 * 8)
    walks = [[source.place(j, v, streams, 0, "s")[0] for j in range(100)] for v in range(streams)]
    assert sorted(sum(walks, [])) == list(range(400))
    for indices in zip(*walks, strict=True):
        for index in indices:
            assert records[index].messages[-1].content == f"t{index}"
    assert 20 <= len(reads) <= 50
    # What is not read does not count.
    monkeypatch.setattr(parquet_rows, "_GROUP_BYTES", 20 * 100)
    monkeypatch.setattr(parquet_rows, "_held", parquet_rows._Held())
    records = opened("parquet", tmp_path, columns={"text": "text"})
    assert records[0].messages[-1].content == "t0"
    (fault,) = {row.get(FAULT) for row in (ParquetRows([tmp_path / "a.parquet"])[n] for n in range(2))}
    assert fault == "damaged parquet"


@pytest.mark.parametrize("error", ["ArrowNotImplementedError", "ArrowTypeError", "ArrowMemoryError", "ArrowInvalid"])
def test_whatever_parquet_raises_is_a_fault_with_words(error, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    corpora.parquet(tmp_path / "a.parquet", [{"text": "a"}])
    records = opened("parquet", tmp_path, columns={"text": "text"})

    def fail(*args, **kwargs):
        raise getattr(pyarrow, error)()

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read_row_group", fail)
    with pytest.raises(RejectedRecord, match=f"damaged parquet: .*{error}"):
        records[0]


def test_large_lists_are_read_an_element_at_a_time(tmp_path):
    segment = {"sid": "s", "begin_time": 0.0, "end_time": 1.0, "text_tn": "x" * 2000, "subsets": ["{XL}"]}
    rows = [{"aid": str(n), "path": "a.opus", "segments": [segment] * 50} for n in range(60)]
    file = tmp_path / "GigaSpeech.json"
    file.write_text(json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": rows}))
    del rows
    records, most = with_peak(lambda: opened("gigaspeech", tmp_path, split="XL"))
    assert len(records) == 3_000 and most < file.stat().st_size / 3
    whole = file.read_text()
    for harmed, words in ((whole[:-9], "not JSON"), (whole.replace("audios", "sounds", 1), "no key 'audios'")):
        file.write_text(harmed)
        with pytest.raises(UserError, match=words):
            opened("gigaspeech", tmp_path, split="XL")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x),
    ),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_elements_are_those_of_the_whole_file(content, block, indent):
    held, streamed._BLOCK = streamed._BLOCK, block
    try:
        told = json.dumps({"a": content, "b": [content, 12, content]}, indent=indent)
        assert list(elements(io.StringIO(told), "f", "b")) == [content, 12, content]
        assert list(elements(io.StringIO(json.dumps([content] * 3, indent=indent)), "f")) == [content] * 3
        with pytest.raises(UserError, match="not JSON"):
            list(elements(io.StringIO(told[: told.rindex("]")]), "f", "b"))
    finally:
        streamed._BLOCK = held
