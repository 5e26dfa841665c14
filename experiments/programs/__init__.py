"""What `omnidiff train` can train: the values of `config.program` and the builders behind them."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from experiments.programs.data import build_sets
from experiments.programs.image_tokenizer import image_tokenizer_run
from experiments.programs.omni import omni_run, open_sets, task_names
from experiments.programs.run import Run
from experiments.programs.speech_codec import speech_decoder_run, speech_tokenizer_run
from experiments.programs.speech_encoder import speech_encoder_run
from experiments.programs.tokenizers import load_tokenizers
from omnidiff_jax.config import suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.sharding.distributed import barrier, is_primary

# (config, workdir) -> the arguments of `training.loop.train`.
Builder = Callable[[ConfigDict, Path], Run]


def omni(config: ConfigDict, workdir: Path) -> Run:
    """The any-to-any model: on the Scenes sets under `workdir/data`, built first where they are missing, or on the
    encoded sets of `config.data.folder`, one folder a task (`omnidiff data build`)."""
    if config.data.set == "scenes":
        folder = workdir / "data"
        if is_primary():
            build_sets(config, folder)
        barrier("data sets are built")
    elif config.data.set == "encoded":
        folder = Path(config.data.folder)
    else:
        raise UserError(f"config.data.set = {config.data.set!r}; {suggest(config.data.set, ('scenes', 'encoded'))}")
    tokenizers = load_tokenizers(config)
    return omni_run(config, open_sets(folder, task_names(config), tokenizers), tokenizers)


PROGRAMS: dict[str, Builder] = {
    "omni": omni,
    "image_tokenizer": image_tokenizer_run,
    "speech_encoder": speech_encoder_run,
    "speech_tokenizer": speech_tokenizer_run,
    "speech_decoder": speech_decoder_run,
}
