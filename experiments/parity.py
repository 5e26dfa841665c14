"""Repeats recorded runs of the released code with this one and compares every number.

omnidiff parity --fixtures=DIR
omnidiff parity --fixtures=DIR --json
"""

import dataclasses
import json

from experiments.common import Command
from omnidiff_jax.errors import UserError
from omnidiff_jax.files import path
from omnidiff_jax.parity.check import Row
from omnidiff_jax.parity.fixtures import FixtureSet
from omnidiff_jax.parity.kinds import run as run_fixtures

COMMAND = Command("parity", __doc__)
FIXTURES = COMMAND.string("fixtures", "folder of .npz fixtures", required=True)
JSON = COMMAND.switch("json", "end with one line of JSON that holds all rows")


def run() -> None:
    fixtures = FixtureSet(path(str(FIXTURES.value)))
    rows: list[Row] = []
    for found in run_fixtures(fixtures):
        rows += found
        for row in found:
            print(line(row), flush=True)
    failed = [row for row in rows if not row.ok]
    print(f"{len(rows)} outputs of {len(fixtures.paths)} fixtures, {len(failed)} failed")
    if JSON.value:
        print(json.dumps({"rows": [as_dict(row) for row in rows]}))
    if failed:
        names = sorted({row.fixture for row in failed})
        raise UserError(f"{len(failed)} of {len(rows)} outputs are not reproduced, in {', '.join(names)}")


def as_dict(row: Row) -> dict[str, object]:
    """The row's columns; a note only where there is one."""
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "note" or value}


def line(row: Row) -> str:
    error = "-" if row.max_error is None else f"{row.max_error:.2e}"
    verdict = "ok  " if row.ok else "FAIL"
    note = f"  {row.note}" if row.note else ""
    return f"{verdict} {row.fixture:<34} {row.output:<52} {error:>9} of {row.tolerance:.0e}{note}"


if __name__ == "__main__":
    COMMAND.main(run)
