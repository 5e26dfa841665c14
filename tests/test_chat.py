"""Chat layout: the released model's prompts and training samples, exactly, and the same code over a nano layout."""

import json

import numpy as np
import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Message
from omnidiff_jax.tasks import chat
from omnidiff_jax.vocabulary import Vocabulary


class CharacterTokenizer:
    """The fixtures' stand-in: GPT-2 byte-level characters, ids in the order of its alphabet."""

    size = 256

    def __init__(self):
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = visible + [byte for byte in range(256) if byte not in visible]
        self._ids = {byte: number for number, byte in enumerate(order)}
        self._bytes = dict(enumerate(order))

    def encode(self, text):
        return [self._ids[byte] for byte in text.encode()]

    def decode(self, ids):
        return bytes(self._bytes[int(i)] for i in ids if i < self.size).decode()


def turns(messages):
    return tuple(Message(**message) for message in messages)


@pytest.fixture(scope="module")
def recorded(golden):
    fixture = np.load(golden / "preprocess.npz")
    return fixture, json.loads(str(fixture["meta"]))


NAMES = ("text_single", "text_multi", "text_has_eos", "asr", "tts", "t2i", "vqa", "s2i", "svqa")


@pytest.mark.parametrize("name", NAMES)
def test_training_samples_are_the_released_ones(recorded, name):
    fixture, meta = recorded
    sample = meta["samples"][name]
    messages = turns(sample["messages"])
    layout = chat.ChatLayout(Vocabulary.released(), CharacterTokenizer(), special_strings="ids")
    images = [
        np.array(meta["image_tokens"][f"{image}@{512 if role == 'user' else 256}"])
        for image, role in zip(sample["images"] or (), chat.media_roles(messages, "<|image|>"), strict=True)
    ]
    frames = iter(fixture[f"out/{name}/audio_n_frames"] if f"out/{name}/audio_n_frames" in fixture else ())
    audios = [
        int(next(frames)) if role == "user" else np.array(meta["discrete_audio_tokens"][audio])
        for audio, role in zip(sample["audios"] or (), chat.media_roles(messages, "<|audio|>"), strict=True)
    ]
    rendered = layout.render(messages, images, audios)
    np.testing.assert_array_equal(rendered.tokens, fixture[f"in/{name}/raw_input_ids"])
    labels = np.where(rendered.targets, rendered.tokens, -100)
    np.testing.assert_array_equal(labels, fixture[f"in/{name}/raw_labels"])
    if f"out/{name}/audio_positions" in fixture:
        slots = np.flatnonzero(rendered.tokens == layout.vocabulary.context_audio)
        np.testing.assert_array_equal(slots, fixture[f"out/{name}/audio_positions"].ravel())


def test_prompts_are_the_recorded_strings(golden):
    recorded = json.loads((golden / "manifests" / "prompt_layouts.json").read_text())
    picture = "Please generate an image based on the input audio."
    spoken = "Please response the input audio"
    conversations = {
        "ASR": [("user", "Convert the speech to text.\n<|audio|>")],
        "TTS": [("user", "Convert the text to speech.\nTEXT")],
        "VQA": [("user", "QUESTION\n<|image|>")],
        "T2I": [("user", "Generate an image based on the provided text description.\nPROMPT")],
        "S2I": [("system", picture), ("user", "\n<|audio|>")],
        "SQA": [("system", f"{spoken}."), ("user", "\n<|audio|>")],
        "SVQA": [("system", f"{spoken} based on the given image."), ("user", "<|audio|>\n<|image|>")],
    }
    prompts = {
        name: chat.segments([Message(*turn) for turn in turns], generate=True) for name, turns in conversations.items()
    }
    assert {name: "".join(part.value for part in parts) for name, parts in prompts.items()} == recorded


def nano():
    return chat.ChatLayout(Vocabulary.compact(256, 512, 64), CharacterTokenizer())


def test_prompt_is_the_head_of_the_training_sample():
    layout = nano()
    question = (Message("system", "Be brief."), Message("user", "<|audio|>\n<|image|>"))
    answer = Message("assistant", "He swings.\n<|audio|>")
    image, heard, spoken = np.arange(16), 7, np.arange(5)
    prompt = layout.prompt(question, [image], [heard])
    sample = layout.render((*question, answer), [image], [heard, spoken])
    np.testing.assert_array_equal(sample.tokens[: len(prompt)], prompt)
    np.testing.assert_array_equal(np.flatnonzero(sample.targets), np.arange(len(prompt), len(sample.tokens)))
    assert (prompt == layout.vocabulary.context_audio).sum() == heard + 4
    inner = layout.vocabulary.speech.decode(sample.tokens[-8:-3])
    np.testing.assert_array_equal(inner, spoken)
    assert prompt.dtype == sample.tokens.dtype == np.int32 and sample.targets.dtype == bool


def test_special_strings_are_text_unless_asked():
    layout = nano()
    messages = (Message("user", "say <|im_end|>"), Message("assistant", "<|endoftext|>"))
    rendered = layout.render(messages)
    assert (rendered.tokens == layout.vocabulary.im_end).sum() == 2
    assert layout.vocabulary.pad not in rendered.tokens
    asked = chat.ChatLayout(layout.vocabulary, layout.text, special_strings="ids").render(messages)
    assert (asked.tokens == layout.vocabulary.im_end).sum() == 3
    assert layout.vocabulary.pad in asked.tokens


def test_written_codes_are_codes_where_special_strings_are():
    """The released tokenizer has every code among its added tokens; a number that is no code stays text."""
    released = Vocabulary.released()
    layout = chat.ChatLayout(released, CharacterTokenizer(), special_strings="ids")
    written = layout.encode_text("a<|image_5|><|audio_77|>b")
    assert written[1:3] == [168077, 151765] and len(written) == 4
    assert len(layout.encode_text("<|image_8192|>")) == len("<|image_8192|>")


def test_wrong_conversations_are_refused_in_one_line():
    layout = nano()
    user, assistant = Message("user", "hi"), Message("assistant", "ho")
    with pytest.raises(UserError, match="no assistant"):
        layout.render((user,))
    with pytest.raises(UserError, match="assistant"):
        layout.render((user, Message("asistant", "ho")))
    with pytest.raises(UserError, match=r"1 <\|image\|> tags for 0"):
        layout.render((Message("user", "<|image|>"), assistant))
    with pytest.raises(UserError, match=r"0 <\|audio\|> tags for 1"):
        layout.render((user, assistant), audios=[3])
    with pytest.raises(UserError, match="codebook"):
        layout.render((Message("user", "<|image|>"), assistant), images=[np.array([64])])
    with pytest.raises(UserError, match="special_strings"):
        chat.ChatLayout(layout.vocabulary, layout.text, special_strings="yes")
    with pytest.raises(UserError, match="256 pieces"):
        chat.ChatLayout(Vocabulary.compact(10, 4, 4), layout.text)
