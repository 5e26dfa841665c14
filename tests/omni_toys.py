"""A random any-to-any model and stand-in codecs, small enough to sample from in a test."""

import dataclasses
import functools

import jax
import numpy as np
from flax.core import meta

from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.queries import Request
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig, OmniModel, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.records import Waveform
from omnidiff_jax.sampling.config import SamplerConfig
from omnidiff_jax.sampling.denoiser import module_denoiser
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.vocabulary import Vocabulary

SIZE, GRID, FEATURES, RATE = 64, (4, 4), 24, 16000
LEVELS = 16


class Letters:
    """One id a byte of ASCII."""

    size = 128

    def encode(self, text):
        return list(text.encode("ascii", "replace"))

    def decode(self, ids):
        return bytes(ids).decode()

    def untaught(self, text):
        return [character for character in dict.fromkeys(text) if not character.isascii()]


VOCABULARY = Vocabulary.compact(Letters.size, LEVELS, LEVELS)


def image_codes(images):
    """uint8 [B, 16h, 16w, 3] -> the brightness of each patch, [B, h*w] in 0..15."""
    b, height, width, _ = images.shape
    patches = images.reshape(b, height // 16, 16, width // 16, 16, 3).mean(axis=(2, 4, 5))
    return (patches // 16).astype(np.int32).reshape(b, -1)


def draw(codes):
    plain = np.asarray(codes, np.uint8).reshape(-1, *GRID, 1) * np.uint8(16)
    return np.broadcast_to(plain.repeat(16, 1).repeat(16, 2), (len(codes), SIZE, SIZE, 3)).copy()


def speech_codes(waves):
    """Loudness of every 80 ms."""
    hop = RATE * 2 // 25
    blocks = [np.abs(wave.samples[: len(wave.samples) // hop * hop]).reshape(-1, hop) for wave in waves]
    return [np.minimum(block.mean(axis=1) * LEVELS, LEVELS - 1).astype(np.int32) for block in blocks]


def speak(codes):
    return [Waveform(np.repeat(np.float32(row) / LEVELS, RATE * 2 // 25), RATE) for row in codes]


def frames(wave):
    """[n, FEATURES], one row every 60 ms."""
    hop = wave.rate * 6 // 100
    count = max(len(wave.samples) // hop, 1)
    blocks = np.resize(wave.samples, (count, hop))
    return np.stack([np.sin((i + 1) * blocks.mean(axis=1) * 9) for i in range(FEATURES)], axis=1).astype(np.float32)


CODECS = Codecs(
    ChatLayout(VOCABULARY, Letters(), speech=SpeechLayout(width=FEATURES)),
    image_codes,
    speech_codes,
    frames,
    draw,
    speak,
    GRID,
    SIZE,
    SIZE,
)
MODEL = OmniConfig(
    BackboneConfig(
        vocab_size=VOCABULARY.size,
        width=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        hidden=48,
        rope_theta=1e4,
        init_stddev=0.3,  # answers that depend on the prompt
        dtype="float32",
        remat="none",
    ),
    SpeechEncoderConfig(features=FEATURES, width=16, heads=2, ffn=32, blocks=1, tp_blocks=1, vocab_size=8),
    AdapterConfig(inputs=16, outputs=32, init_stddev=0.3, dtype="float32"),
)


@functools.cache
def denoiser():
    params = meta.unbox(jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0)))
    return module_denoiser(OmniModel(MODEL), params)


def quick(decoding, **sampler):
    """The decoding in four steps over short answers; equal settings, so that tasks share compiled code."""
    return dataclasses.replace(decoding, sampler=SamplerConfig(steps=4, **sampler), length=12, adaptive=None)


def generator(limit=160, rows=3, **changes):
    """`changes` replaces the decoding settings of tasks by name."""
    decoding = {name: quick(task.decoding) for name, task in TASKS.items()} | changes
    return Generator(denoiser(), CODECS, decoding, rows=rows, limit=limit, multiple=160, seed=3)


def tone(seconds, pitch=9.0, rate=RATE):
    return Waveform(np.sin(np.arange(int(seconds * rate)) / pitch).astype(np.float32) / 2, rate)


def picture(seed, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def left_half():
    return np.tile(np.arange(SIZE) < SIZE // 2, (SIZE, 1))


def request(task, number=0):
    """A request that gives everything the task takes; `number` varies contents, lengths and sizes."""
    return Request(
        text=("red", "a big blue square", "where is the cross")[number % 3] if "text" in task.inputs else "",
        image=picture(number, SIZE + 9 * number, SIZE) if "image" in task.inputs else None,
        audio=tone(0.5 + 0.3 * number, 5.0 + number) if "audio" in task.inputs else None,
        hole=left_half() if "hole" in task.inputs else None,
        request_id=100 + number,
    )
