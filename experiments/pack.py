"""Packs a trained run, with its tokenizers, into a model that others load by its name.

    omnidiff pack --workdir=DIR --name=commons OUT
    OMNIDIFF_MODELS=OUT omnidiff sample --model=commons --task=captioning --image=FILE
    pip install OUT/omnidiff_model_commons-*.whl

Leaves OUT/NAME, a folder, and the same as a wheel, in half precision; says size and sha256. Either is checked whenever
it is loaded: size and sha256 of every file.
"""

from experiments.common import Command
from omnidiff_jax.runs.pack import pack

COMMAND = Command("pack", __doc__, arguments="OUT")
WORKDIR = COMMAND.string("workdir", "folder of a trained run", required=True)
NAME = COMMAND.string("name", "that it will be loaded by", required=True)


def run(out: str) -> None:
    packed = pack(str(WORKDIR.value), str(NAME.value), out)
    print(f"{packed.folder}: OMNIDIFF_MODELS={packed.folder.parent} finds it")
    print(f"{packed.wheel}: {packed.size / 1e6:.1f} MB, sha256 {packed.sha256}")


if __name__ == "__main__":
    COMMAND.main(run)
