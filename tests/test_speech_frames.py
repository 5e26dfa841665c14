"""The layout of heard speech is one fact: encoders of any number of queries and any width are served everywhere."""

import dataclasses

import jax
import numpy as np
import pytest
from omni_toys import CODECS, FEATURES, MODEL, Letters, tone
from omni_toys import frames as features

from omnidiff_jax.codecs import encode
from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.mixture import Stage
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.sources import Source
from omnidiff_jax.data.streams import Corpus
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.omni import OmniModel, init_params
from omnidiff_jax.models.sanm import SpeechEncoderConfig
from omnidiff_jax.records import Message, Record
from omnidiff_jax.sampling import Prompt, blank, build_canvas
from omnidiff_jax.speech_frames import SpeechLayout, packed_frames
from omnidiff_jax.tasks.chat import ChatLayout

VOCABULARY = CODECS.layout.vocabulary
RECORDS = [
    Record(
        number,
        "asr",
        (Message("user", "<|audio|> and <|audio|>"), Message("assistant", "ho")),
        audios=(tone(0.3 + number / 10), tone(0.2)),
    )
    for number in range(6)
]


@pytest.mark.parametrize("queries", [(), (3, 1), (0, 1, 2, 15), (5, 4, 3, 2, 1, 0)])
@pytest.mark.parametrize("width", [FEATURES, FEATURES - 6])
def test_every_encoder_is_heard(queries, width):
    encoder = dataclasses.replace(MODEL.speech_encoder, queries=queries, features=width)
    layout = encoder.layout
    codecs = dataclasses.replace(
        CODECS,
        layout=ChatLayout(VOCABULARY, Letters(), speech=layout),
        features=lambda wave: features(wave)[:, :width],
    )
    examples = list(encode.encode(RECORDS, codecs))
    assert [example.sample_id for example in examples] == [record.sample_id for record in RECORDS]

    packing = PackingConfig(length=256, frames=64, samples=4, open_rows=2, speech=layout)
    corpus = Corpus({"asr": Source(examples, "asr")}, (Stage(5, weights={"asr": 1.0}),), VOCABULARY)
    batches = HostBatches(corpus, DataConfig(1, 2, 2, 0, packing))
    packed = next(batches).inputs
    assert batches.rejected == {}
    prompts = [
        Prompt(example.tokens, example.frames, tuple(example.frame_counts))
        for example in encode.encode_prompts(RECORDS, codecs)
    ]
    canvas = build_canvas(prompts, [blank(2, VOCABULARY.mask)] * len(prompts), VOCABULARY, speech=layout)
    model = dataclasses.replace(MODEL, speech_encoder=encoder)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    for inputs in (packed, canvas.inputs):
        speech = inputs.speech
        assert speech.features.shape[2] == width and (speech.segment_ids > 0).any()
        context = inputs.tokens == VOCABULARY.context_audio
        for slots, marks, rows in zip(speech.slots, context, speech.queries, strict=True):
            np.testing.assert_array_equal(slots[slots >= 0], np.flatnonzero(marks))
            np.testing.assert_array_equal(rows[rows >= 0], np.tile(queries, (rows >= 0).sum() // max(len(queries), 1)))
        jax.eval_shape(lambda params, x: OmniModel(model).apply({"params": params}, x), shapes, inputs)


def test_frames_that_do_not_fit_are_refused():
    layout, frames = SpeechLayout((0, 1), 4), np.zeros((3, 4), np.float32)
    assert layout.slots(3) == 5 and layout.sizes([3, 0]).tolist() == [5, 2]
    packed = packed_frames([[(frames, 7), (frames, 20)], []], 10, layout)
    assert packed.slots[0].tolist() == [*range(7, 12), *range(20, 25)]
    with pytest.raises(UserError, match="row 1 needs 10 frames, its buffer holds 9"):
        packed_frames([[], [(frames, 0), (frames, 5)]], 9, layout)
    with pytest.raises(UserError, match="3 wide, the speech encoder takes 4"):
        packed_frames([[(frames[:, :3], 0)]], 9, layout)


def test_the_defaults_are_the_released_encoders():
    assert SpeechEncoderConfig().layout == SpeechLayout() == PackingConfig().speech == SpeechLayout((0, 1, 2, 15), 560)
