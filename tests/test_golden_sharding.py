"""Full-size train states lie on the presets' meshes as recorded (`python tests/golden_sharding.py` records them)."""

import json

import golden_sharding
import pytest


def test_every_case_is_recorded():
    assert sorted(p.stem for p in golden_sharding.FOLDER.glob("*.json")) == sorted(golden_sharding.CASES)


@pytest.mark.parametrize("case", golden_sharding.CASES)
def test_state_lies_as_recorded(case):
    recorded = json.loads((golden_sharding.FOLDER / f"{case}.json").read_text())
    found = golden_sharding.describe(case)
    changed = {
        name: (recorded["parameters"].get(name), spec)
        for name, spec in found["parameters"].items()
        if recorded["parameters"].get(name) != spec
    }
    assert not changed
    assert found == recorded
