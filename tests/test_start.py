"""What starting costs: packages that few programs need are imported by those that need them."""

import subprocess
import sys

import pytest

# Each takes a good part of a second, or several, to import.
LATE = (
    "scipy",
    "numba",
    "librosa.core",
    "tensorflow",
    "tensorflow_datasets",
    "tensorboardX",
    "tqdm",
    "torch",
    "matplotlib",
    "jax.experimental.pallas.ops.tpu",
)


@pytest.mark.parametrize(
    "module",
    ["omnidiff_jax.answering.load", "omnidiff_jax.codecs.tokenizers", "omnidiff_jax.media.features"],
)
def test_answering_imports_nothing_that_it_does_not_use(module):
    code = f"import sys, {module}; print([name for name in {LATE} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout == "[]\n", found.stdout + found.stderr


def test_the_package_itself_imports_nothing():
    code = "import sys, omnidiff_jax; print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout == "[]\n", found.stdout + found.stderr
