"""`omnidiff parity`: passes what is right, fails what is changed, missing, unknown or unreadable."""

import fnmatch
import json
import shutil

import numpy as np
import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.parity.check import Check
from omnidiff_jax.parity.fixtures import Fixture, FixtureSet, load
from omnidiff_jax.parity.image import _grid
from omnidiff_jax.parity.kinds import KINDS, run
from omnidiff_jax.parity.sampler import _vocabulary
from omnidiff_jax.parity.speech_out import ode_steps

CHEAP = (
    "01_sensevoice_frontend", "03_resampler_projector", "08_rates", "09_resample", "audio_prompt", "forward_process",
    "packing", "preprocess",
)  # fmt: skip


def rows_of(folder):
    return [row for rows in run(FixtureSet(folder)) for row in rows]


def rewrite(source, target, change):
    """Copies a fixture with some arrays changed (`change` edits the dict in place)."""
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(target, **arrays)


def test_required_outputs_are_the_listed_ones(golden):
    listed = json.loads((golden / "required.json").read_text())
    assert {name: sorted(kind.required) for name, kind in KINDS.items()} == {k: sorted(v) for k, v in listed.items()}


def test_cheap_fixtures_pass_and_every_required_output_has_a_row(golden, tmp_path):
    for name in CHEAP:
        shutil.copy(golden / f"{name}.npz", tmp_path)
    rows = rows_of(tmp_path)
    assert [row for row in rows if not row.ok] == []
    for name in CHEAP:
        fixture, compared = load(golden / f"{name}.npz"), {row.output for row in rows if row.fixture == name}
        for pattern in KINDS[fixture.kind].required:
            named = set(fnmatch.filter(fixture.outputs, pattern))
            assert named and named <= compared


def test_recorded_sampler_runs_pass(golden, tmp_path):
    """Every trajectory and single call of the released sampler, token for token."""
    names = [path.name for path in golden.glob("sampler_*.npz")] + ["sample_tokens.npz"]
    assert len(names) > 20
    for name in names:
        shutil.copy(golden / name, tmp_path)
    assert [row for row in rows_of(tmp_path) if not row.ok] == []


@pytest.mark.slow
def test_every_fixture_passes(golden):
    assert [row for row in rows_of(golden) if not row.ok] == []


@pytest.mark.parametrize("name", ["03_resampler_projector", "09_resample", "packing", "08_rates"])
def test_any_changed_number_fails(golden, tmp_path, name):
    """Each required output in turn: its last element a little off, and for reals NaN."""
    fixture = load(golden / f"{name}.npz")
    patterns = KINDS[fixture.kind].required
    outputs = [o for o in fixture.outputs if any(fnmatch.fnmatchcase(o, p) for p in patterns)][:6]
    for output in outputs:
        kinds = ("off", "nan") if fixture[output].dtype.kind == "f" else ("off",)
        for kind in kinds:

            def change(arrays, output=output, kind=kind):
                value = np.array(arrays[output])
                flat = value.reshape(-1)
                step = 1 if value.dtype.kind != "f" else np.nan if kind == "nan" else 1e-3
                flat[-1] += step
                arrays[output] = value

            rewrite(golden / f"{name}.npz", tmp_path / f"{name}.npz", change)
            failed = {row.output for row in rows_of(tmp_path) if not row.ok}
            assert output in failed, (output, kind)


def changed(golden, tmp_path, change, name="03_resampler_projector"):
    rewrite(golden / f"{name}.npz", tmp_path / f"{name}.npz", change)
    return [(row.output, row.note) for row in rows_of(tmp_path) if not row.ok]


def test_what_is_missing_or_misshapen_fails(golden, tmp_path):
    assert changed(golden, tmp_path, lambda a: a.pop("out/y")) == [("out/y", "the fixture lacks this required output")]
    failed = changed(golden, tmp_path, lambda a: a.update({"out/y": a["out/y"][..., :-1]}))
    assert failed[0][0] == "out/y" and "in the fixture" in failed[0][1]
    failed = changed(golden, tmp_path, lambda a: a.pop("in/x"))
    assert set(failed) >= {("*", "the fixture lacks in/x"), ("out/y", "this required output has no counterpart here")}
    failed = changed(golden, tmp_path, lambda a: a.update({"params/mlp.9.weight": np.ones(3, np.float32)}))
    assert any("mlp.9.weight" in note for _, note in failed)
    extra = {"out/of_an_unknown_rate": np.arange(3)}
    failed = changed(golden, tmp_path, lambda a: a.update(extra), "08_rates")
    assert ("out/of_an_unknown_rate", "this required output has no counterpart here") in failed


@pytest.mark.parametrize(("reference", "steps"), [("f(x, option_steps=4)", 4), ("option_steps = 12", 12), ("f(x)", 10)])
def test_an_utterance_is_decoded_in_the_recorded_steps(reference, steps):
    assert ode_steps(Fixture("07_token2wav", {"reference": reference}, {})) == steps


def test_unknown_kinds_and_broken_files_fail(golden, tmp_path):
    def rename(arrays):
        arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | {"fixture": "resampel"}))

    assert changed(golden, tmp_path, rename) == [("*", "unknown kind 'resampel'; did you mean 'resample'?")]
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 not an archive")
    np.savez(tmp_path / "no_meta.npz", x=np.ones(2))
    np.savez(tmp_path / "pickled.npz", meta=np.array(json.dumps({"fixture": "rates"})), x=np.array([{}], dtype=object))
    failed = {row.fixture for row in rows_of(tmp_path) if not row.ok}
    assert failed == {"03_resampler_projector", "broken", "no_meta", "pickled"}


def test_errors_are_relative_to_the_value_or_the_arrays_size():
    fixture = Fixture("f", {}, {"out/a": np.array([100.0, 1e-6, -1.0]), "out/n": np.array([np.nan, 1.0])})
    check = Check(fixture)
    check.relative("out/a", np.array([100.005, 2e-6, -1.0]))
    check.relative("out/a", np.array([100.0, 1e-2, -1.0]))
    check.relative("out/n", np.array([np.nan, 1.0]))
    assert [row.ok for row in check.rows] == [True, False, False]
    assert check.rows[2].max_error is None


def test_the_command_ends_with_json(golden, tmp_path, omnidiff):
    for name in ("packing", "08_rates"):
        shutil.copy(golden / f"{name}.npz", tmp_path)
    done = omnidiff("parity", f"--fixtures={tmp_path}", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert all(set(row) == {"fixture", "output", "max_error", "tolerance", "ok"} and row["ok"] for row in rows)
    rewrite(golden / "packing.npz", tmp_path / "packing.npz", lambda a: a.pop("out/pack0/labels"))
    failed = omnidiff("parity", f"--fixtures={tmp_path}", "--json")
    assert failed.returncode == 2 and len(failed.stderr.strip().splitlines()) == 1 and "packing" in failed.stderr
    assert omnidiff("parity", f"--fixtures={tmp_path / 'none'}").returncode == 2


@pytest.mark.parametrize(("shape", "grid"), [((2, 3, 16, 64), (4, 16)), ((2, 3, 32, 32), (8, 8))])
def test_codes_are_drawn_on_the_grid_that_was_recorded(shape, grid):
    """64 codes of a 16 x 64 picture: `decode_code` without a shape takes a square."""
    fixture = Fixture("magvitv2", {}, {"out/drawn": np.zeros(shape, np.float32)})
    assert _grid(fixture, "out/drawn", 64, 4) == grid
    assert _grid(fixture, "out/absent", 64, 4) == (8, 8)
    with pytest.raises(UserError, match="60 codes do not fill the grid"):
        _grid(fixture, "out/drawn", 60, 4)


@pytest.mark.parametrize("mask_id", [0, 7, 11, 150])
def test_a_recorded_mask_id_is_the_vocabularys(mask_id):
    assert _vocabulary(mask_id).mask == mask_id
