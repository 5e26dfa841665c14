"""Package metadata: `pip install .` gives the library, the `omnidiff` command and the built-in Scenes world.

Ranges live here; `requirements.lock` pins one set of versions that serves both supported Pythons (`make lock`).
"""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1",
    "array-record>=0.8",
    # espeak-ng's library and voices: the speech of the built-in Scenes world, which every nano run trains on.
    "espeakng-loader>=0.2.4",
    "flax>=0.12,<0.13",
    # Paths in buckets; the kinds of bucket are extras.
    "fsspec>=2026.9",
    "grain>=0.2.16,<0.3",
    "jax>=0.10,<0.12",
    # Griffin-Lim. It is an import of milliseconds until it is called, and brings soxr, which nothing here asks for.
    "librosa>=0.11,<0.12",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11",
    "safetensors>=0.6",
    "scipy>=1.14",
    "pyyaml>=6",
    "sentencepiece>=0.2.1",
    "soundfile>=0.13",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.9",
    # Orbax's own; conversion writes its arrays in parts.
    "tensorstore>=0.1.76",
    "tokenizers>=0.22",
    "tqdm>=4.67",
]

EXTRAS = {
    # Vendor runtimes: one of them on an accelerator machine.
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "cuda": ["jax[cuda12]>=0.10,<0.12"],
    # Writing TFDS data sets; reading them needs neither.
    "build": ["apache-beam>=2.71", "importlib_resources>=6.0", "tensorflow-cpu>=2.20"],
    # `omnidiff data build --beam_runner=…`; older protobuf, pyarrow and pillow than the lock pins.
    "beam": ["apache-beam>=2.71"],
    # The outside judge of speech and the figures of the report: what `evaluate` needs and a training pod does not.
    # pocketsphinx 5.1 has no wheel for CPython 3.12.
    "eval": ["matplotlib>=3.10", "pocketsphinx>=5.0.4,<5.1"],
    # SDVI in the voices of Kokoro, from a folder of one's own.
    "kokoro": ["onnxruntime>=1.20"],
    # What Commons is spoken and judged by: Kokoro and DNSMOS, Whisper and its normaliser.
    "commons": ["faster-whisper>=1.2,<2", "onnxruntime>=1.20", "whisper-normalizer>=0.1.15,<0.2"],
    # Corpora in parquet.
    "parquet": ["pyarrow>=19"],
    # Paths in buckets: `gs://…`, `s3://…`.
    "gcs": ["gcsfs>=2026.9", "google-auth>=2.30"],
    "s3": ["s3fs>=2026.9"],
    # Public benchmarks: Whisper's normaliser and Whisper as a judge; tables in parquet and sheets.
    "benchmarks": ["faster-whisper>=1.2,<2", "openpyxl>=3.1", "pyarrow>=20", "whisper-normalizer>=0.1.15,<0.2"],
    # The attention backend of this name.
    "tokamax": ["tokamax>=0.0.12"],
    # Weights in eight bits.
    "quantize": ["qwix>=0.1.8"],
    # `omnidiff serve`. PyAV reads what browsers record.
    "serve": [
        "av>=15",
        "prometheus-client>=0.22",
        "pydantic>=2.11",
        "python-multipart>=0.0.20",
        "starlette>=0.47",
        "uvicorn>=0.35",
    ],
    # To read `.pt` weights (safetensors need no torch), and for the tests and benchmarks beside other people's code.
    "torch": ["torch>=2.6", "transformers>=4.51,<6"],
    "dev": [
        "av>=15",
        "chex>=0.1.90",
        # Object stores on the loopback, for the tests.
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2026.9",
        "hypothesis>=6.130",
        "moto[s3,server]>=5.2",
        "mypy>=1.18",
        # Its client asks the server.
        "openai>=2",
        "openpyxl>=3.1",
        # Drives the machine's own chromium; brings none.
        "playwright>=1.55",
        "prometheus-client>=0.22",
        "pydantic>=2.11",
        "pyarrow>=19",
        "pytest>=8.4",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "python-multipart>=0.0.20",
        "qwix>=0.1.8",
        "ruff>=0.14",
        "s3fs>=2026.9",
        # Makes requests of the server's schema.
        "schemathesis>=4.32",
        "setuptools>=77",
        "starlette>=0.47",
        "tokamax>=0.0.12",
        "uv>=0.9",
        "uvicorn>=0.35",
    ],
}

setup(
    name="omnidiff_jax",
    version="0.1.0",
    description="Omni-Diffusion in JAX: one masked-diffusion transformer over text, speech and image tokens",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["omnidiff_jax*", "experiments*", "data_pipelines*"]),
    package_data={"omnidiff_jax": ["assets/**/*", "serving/page/*"], "experiments": ["launch/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["omnidiff=omnidiff_jax.cli:main"]},
)
