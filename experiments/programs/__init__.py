"""What `omnidiff train` can train: the values of `config.program` and the builders behind them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments.programs.data import build_sets
from experiments.programs.image_tokenizer import image_tokenizer_run
from experiments.programs.omni import check_config, omni_run, open_sets, task_names
from experiments.programs.run import Run
from experiments.programs.speech_codec import speech_decoder_run, speech_tokenizer_run
from experiments.programs.speech_encoder import speech_encoder_run
from experiments.programs.tokenizers import load_tokenizers
from omnidiff_jax.codecs.encode import EncodedRecords
from omnidiff_jax.config import suggest
from omnidiff_jax.data.sources import JsonlRecords, RandomAccess
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import EncodedExample
from omnidiff_jax.sharding.distributed import barrier, is_primary

SETS = ("scenes", "encoded", "jsonl")
# (config, workdir) -> the arguments of `training.loop.train`.
Builder = Callable[[ConfigDict, Path], Run]


def omni(config: ConfigDict, workdir: Path) -> Run:
    """The any-to-any model. `config.data.set` says what it learns from: "scenes", the Scenes sets under `workdir/data`,
    built first where they are missing; "encoded", the sets of `config.data.folder`, one folder a task (`omnidiff data
    build`); "jsonl", that folder's TASK.jsonl, encoded while training (for media that change, or are seen once)."""
    check_config(config)
    if config.data.set not in SETS:
        raise UserError(f"config.data.set = {config.data.set!r}; {suggest(config.data.set, SETS)}")
    tokenizers = load_tokenizers(config)

    def open_sources() -> Mapping[str, RandomAccess[EncodedExample]]:
        if config.data.set == "jsonl":
            files = {name: Path(config.data.folder) / f"{name}.jsonl" for name in task_names(config)}
            return {
                name: EncodedRecords(JsonlRecords(file, task=name), tokenizers.codecs) for name, file in files.items()
            }
        if config.data.set == "encoded":
            return open_sets(config.data.folder, task_names(config), tokenizers)
        folder = workdir / "data"
        if is_primary():
            build_sets(config, folder)
        barrier("data sets are built")
        return open_sets(folder, task_names(config), tokenizers)

    return omni_run(config, open_sources, tokenizers)


PROGRAMS: dict[str, Builder] = {
    "omni": omni,
    "image_tokenizer": image_tokenizer_run,
    "speech_encoder": speech_encoder_run,
    "speech_tokenizer": speech_tokenizer_run,
    "speech_decoder": speech_decoder_run,
}
