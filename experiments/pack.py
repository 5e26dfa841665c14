"""Packs a trained run, with its tokenizers, into a model that others load by its name.

    omnidiff pack --workdir=DIR --name=commons OUT
    OMNIDIFF_MODELS=OUT omnidiff sample --model=commons --task=captioning --image=FILE
    pip install OUT/omnidiff_model_commons-*.whl

Leaves OUT/NAME, a folder, and the same as a wheel, in half precision, or smaller (--dtype=int8); says size and sha256.
Either is checked whenever it is loaded: size and sha256 of every file.
"""

from experiments.common import Command
from omnidiff_jax.runs.pack import pack

COMMAND = Command("pack", __doc__, arguments="OUT")
WORKDIR = COMMAND.string("workdir", "folder of a trained run", required=True)
NAME = COMMAND.string("name", "that it will be loaded by", required=True)
DTYPE = COMMAND.choice("dtype", "of matrices; int8 has a scale for each channel", ("float16", "int8"), "float16")


def run(out: str) -> None:
    packed = pack(str(WORKDIR.value), str(NAME.value), out, eight_bits=DTYPE.value == "int8")
    print(f"{packed.folder}: OMNIDIFF_MODELS={packed.folder.parent} finds it")
    print(f"{packed.wheel}: {packed.size / 1e6:.1f} MB, sha256 {packed.sha256}")


if __name__ == "__main__":
    COMMAND.main(run)
