"""One process that sits MME's miniature with a model that takes its time: `python benchmark_worker.py SETTINGS_JSON`.

Settings: data, out, share (number, of), through (stages), rows, pause (seconds a question).
"""

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from benchmark_toys import sat, text  # noqa: E402

from data_pipelines.benchmarks.yes_no import MME  # noqa: E402
from omnidiff_jax.evaluation.stages import Share  # noqa: E402

if __name__ == "__main__":
    told = json.loads(sys.argv[1])

    def said(request):
        time.sleep(told["pause"])
        return "Yes" if (7 * len(request.text) + request.request_id) % 3 else "No"

    options = {"share": Share(*told["share"]), "through": tuple(told["through"]), "rows": told["rows"]}
    sat("mme", MME, told["data"], Path(told["out"]), text(said), **options)
