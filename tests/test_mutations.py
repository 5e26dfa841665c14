"""Damaged sources of every form: each record is accepted or rejected, and training judges as checking does."""

import collections

import pytest

from experiments.checks.mutate import one_round


@pytest.mark.filterwarnings("ignore")
def test_damaged_records_are_accepted_or_rejected_and_none_is_lost():
    found = collections.Counter()
    for seed in range(32):
        found.update(one_round(seed))
    assert found["accepted"] + found["rejected"] + found["refused"] == found["records"] > 200
    assert found["accepted"] > 20 and found["rejected"] > 40
    assert {"manifest", "json_lines", "parquet", "tar", "gigaspeech"} <= found.keys()


def test_a_footer_that_contradicts_itself_ends_no_process():
    """Sizes of definition levels that are not as many as the schema says: pyarrow calls terminate() where a column's
    own numbers are asked for."""
    assert one_round(35653)["parquet"] > 0
