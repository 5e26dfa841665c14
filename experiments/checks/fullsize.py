"""Runs real media through every full-size module, tokenizers to vocoder and 7B backbone, with random weights.

    omnidiff fullsize FILE...            (about 20 GiB of memory and some minutes a part on two cores)

Proves that shapes, lengths and memory hold at the released size for the given pictures and recordings. Weights are
random, so the answers mean nothing; what is printed is how each file is represented, the seconds, and the process's
peak memory.
"""

import dataclasses
import functools
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.common import Command
from omnidiff_jax.batch import ModelInputs
from omnidiff_jax.codecs.encode import fit_image
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import read_image
from omnidiff_jax.models.magvit import MagvitConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.whisper_vq import WhisperVQConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.speech_frames import packed_frames
from omnidiff_jax.tokenizers import image as images
from omnidiff_jax.tokenizers import speech
from omnidiff_jax.tokenizers.frontend import SpeechFrontend
from omnidiff_jax.vocabulary import Vocabulary

COMMAND = Command("fullsize", __doc__, "FILE...")
SKIP_BACKBONE = COMMAND.switch("skip_backbone", "tokenizers and speech features only (3 GiB instead of 20)")
SPOKEN = 64  # codes that are spoken again, five seconds of a recording
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
T = TypeVar("T")


def run(*files: str) -> None:
    pictures = {f: read_image(f) for f in files if Path(f).suffix.lower() in PICTURES}
    sounds = {f: read_audio(f) for f in files if f not in pictures}
    codes = _pictures(pictures)
    features = _sounds(sounds)
    if not SKIP_BACKBONE.value:
        _backbone(codes, features)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def _random(shapes: Any, dtype: str | None = None) -> Any:
    """Random parameters of the given shapes, one leaf at a time, without a second copy in memory."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        kind = jnp.dtype(dtype) if dtype and jnp.issubdtype(shape.dtype, jnp.floating) else shape.dtype
        if len(shape.shape) < 2:
            return jnp.ones(shape.shape, kind)
        # One block, repeated: drawing 8e9 numbers would take longer than running the model.
        block = jnp.asarray(rng.standard_normal(1 << 16, dtype=np.float32) * 0.02, kind)
        count = int(np.prod(shape.shape))
        return jnp.tile(block, -(-count // len(block)))[:count].reshape(shape.shape)

    return jax.tree.map(leaf, meta.unbox(shapes))


def _timed(name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = jax.block_until_ready(work())
    print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    return result


def _pictures(pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not pictures:
        return {}
    config = MagvitConfig()
    tokenizer = images.ImageTokenizer(config, _random(images.param_shapes(config)), batch_sizes=(1,))
    found = {}
    for file, picture in pictures.items():
        looked = fit_image(picture, 512)[None]
        codes = _timed(f"{file} {picture.shape} -> 512 px codes", functools.partial(tokenizer.encode, looked))
        drawn = tokenizer.decode(codes[:, :256], (16, 16))
        print(
            f"  {codes.shape[1]} codes, {len(np.unique(codes))} distinct; "
            f"256 of them draw a picture of {drawn.shape[1:]}"
        )
        found[file] = codes[0]
    return found


def _sounds(sounds: dict[str, Waveform]) -> dict[str, np.ndarray]:
    frontend = SpeechFrontend()
    found: dict[str, np.ndarray] = {}
    config = WhisperVQConfig()
    voice = speech.SpeechDecoderConfig()
    if not sounds:
        return found
    tokenizer = speech.SpeechTokenizer(config, _random(speech.tokenizer_shapes(config)))
    decoder = speech.SpeechDecoder(voice, _random(speech.decoder_shapes(voice)))
    for file, wave in sounds.items():
        frames = _timed(
            f"{file} {wave.seconds:.1f} s at {wave.rate} Hz -> LFR frames", functools.partial(frontend, wave)
        )
        codes = _timed("  speech codes", functools.partial(tokenizer.encode, [wave]))[0]
        print(
            f"  {len(frames)} frames of {frames.shape[1]}, "
            f"{len(codes)} codes ({len(codes) / wave.seconds:.2f} a second)"
        )
        spoken = _timed(
            f"  {min(len(codes), SPOKEN)} codes spoken", functools.partial(decoder.decode, [codes[:SPOKEN]])
        )[0]
        if not np.isfinite(spoken.samples).all():
            raise UserError(f"{file}: the vocoder's samples are not finite")
        print(f"  {spoken.seconds:.2f} s at {spoken.rate} Hz")
        found[file] = frames
    return found


def _backbone(codes: dict[str, np.ndarray], features: dict[str, np.ndarray]) -> None:
    """One forward pass of the 7B model over each file's tokens, speech encoder and adapter included."""
    gc.collect()
    vocabulary = Vocabulary.released()
    config = OmniConfig()
    params = _timed(
        "random 7B parameters",
        lambda: _random(jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0)), "bfloat16"),
    )
    print(f"  {sum(x.size for x in jax.tree.leaves(params)) / 1e9:.2f} B parameters")
    model = OmniModel(config)

    # On a CPU XLA computes bfloat16 products in float32, and would convert the weights of all layers before the loop.
    kept_in_loop = "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion"
    options = {"xla_disable_hlo_passes": kept_in_loop} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=options)
    def last_logits(params: Any, inputs: ModelInputs) -> jax.Array:
        hidden = model.apply({"params": params}, inputs)
        return model.apply({"params": params}, hidden[:, -1], method="logits")

    encoder = config.speech_encoder
    assert encoder is not None
    for file, ids in codes.items():
        tokens = np.concatenate([[vocabulary.begin_image], vocabulary.image.encode(ids), [vocabulary.end_image]])
        _forward(file, last_logits, params, _inputs(tokens))
    for file, frames in features.items():
        slots = np.full(encoder.layout.slots(len(frames)), vocabulary.context_audio)
        tokens = np.concatenate([[vocabulary.begin_audio], slots, [vocabulary.end_audio]])
        heard = packed_frames([[(frames, 1)]], len(slots), encoder.layout)
        _forward(file, last_logits, params, dataclasses.replace(_inputs(tokens), speech=heard))


def _inputs(tokens: Any) -> ModelInputs:
    tokens = np.asarray(tokens, np.int32)[None]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    return ModelInputs(jnp.asarray(tokens), jnp.ones(tokens.shape, jnp.int32), jnp.asarray(positions))


def _forward(file: str, function: Callable[..., jax.Array], params: Any, inputs: ModelInputs) -> None:
    logits = _timed(f"{file}: backbone over {inputs.tokens.shape[1]} positions", lambda: function(params, inputs))
    if not bool(jnp.isfinite(logits).all()):
        raise UserError(f"{file}: the backbone's logits are not finite")


if __name__ == "__main__":
    COMMAND.main(run)
