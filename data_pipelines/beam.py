"""Shards built by a Beam pipeline, on whatever runs one: this machine (DirectRunner), Dataflow, Flink, Spark.

A shard is an element, and commits itself to its set's folder; the pipeline carries nothing else, so it may be run
again, move, or do a shard twice. Workers need this package, and see the sources and the folder under the same names.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from omnidiff_jax.data.building import Job, build_shard
from omnidiff_jax.errors import UserError
from omnidiff_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Beam:
    """Builds shards as a pipeline.

    Attributes:
        runner: its name, such as "DirectRunner".
        options: of the pipeline, NAME=VALUE or NAME of a switch.
    """

    runner: str
    options: tuple[str, ...] = ()
    host: int = 0
    hosts: int = 1

    def __post_init__(self) -> None:
        """Raises a `UserError` before anything is begun: no Beam, or no such runner or option."""
        beam = _beam()
        try:
            beam.runners.create_runner(self.runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--beam_runner={self.runner}: {_line(error)}; DirectRunner runs here") from error

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        beam = _beam()
        words = [f"--{word}" for word in (f"runner={self.runner}", *self.options)]
        options = beam.options.pipeline_options.PipelineOptions(words)
        try:
            with beam.Pipeline(options=options) as pipeline:
                _ = pipeline | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(build_shard)
        except UserError:
            raise
        except Exception as error:  # runners raise many kinds, with what a shard raised within
            raise UserError(f"--beam_runner={self.runner} broke off: {_line(error)}; what is built stays") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]


def _beam() -> Any:
    try:
        import apache_beam
        import apache_beam.runners
    except ImportError as error:
        raise UserError(f"--beam_runner needs the extra 'beam' ({error}): pip install 'omnidiff_jax[beam]'") from error
    return apache_beam
