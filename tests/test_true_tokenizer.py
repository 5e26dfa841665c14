"""The released text ids, by the tokenizer that Qwen publishes: `omnidiff data fetch commons DIR --part=qwen`.

Where it lies is told by OMNIDIFF_COMMONS (the DIR of that command); without it these tests skip.
"""

import json
import os
from pathlib import Path

import pytest
import tokenizers

from omnidiff_jax.tasks.chat import ChatLayout
from omnidiff_jax.tasks.registry import TASKS
from omnidiff_jax.tokenizers.text import ByteLevelBPETokenizer
from omnidiff_jax.vocabulary import Vocabulary

PLACE = Path(os.environ.get("OMNIDIFF_COMMONS") or "nowhere") / "qwen" / "tokenizer.json"
# Qwen3 adds these four behind the pieces and specials of Qwen2.5.
ADDED_SINCE = range(151665, 151669)
LANGUAGES = (
    "Describe the image.",
    "What's 3.14159 × 2?  Two  spaces, a tab\tand\r\nboth line ends\n\n",
    "Überraschung: ein größeres Straßenfest",
    "Où est l'hôpital, s'il vous plaît ?",
    "请根据图片回答问题。今天天气很好",
    "画像について説明してください。カタカナ",
    "사진에 무엇이 있나요?",
    "Что изображено на картинке?",
    "ما الذي تراه في الصورة؟",
    "चित्र में क्या है?",
    "ภาพนี้คืออะไร",
    "e\u0301 and é, ﬁ, Å",  # the normal form is composed
    "👩‍👩‍👧‍👦 🙂 1️⃣",
    "def f(x):\n    return x**2  # 'it's'",
    " leading and trailing ",
    "<tool_call> is text here",
)

pytestmark = pytest.mark.skipif(
    not PLACE.is_file(),
    reason="no tokenizer of Qwen: OMNIDIFF_COMMONS names no folder of `omnidiff data fetch commons`",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """tokenizer.json as Qwen2.5 has it: without what Qwen3 added."""
    content = json.loads(PLACE.read_text(encoding="utf-8"))
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] not in ADDED_SINCE]
    file = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def text(published):
    return ByteLevelBPETokenizer.load(published.parent)


def test_ids_are_those_of_the_published_tokenizer(published, text):
    theirs = tokenizers.Tokenizer.from_file(str(published))
    prompts = [task.prompt(line)[-1].content for task in TASKS.values() for line in ("", *LANGUAGES[:5])]
    for line in (*LANGUAGES, *prompts):
        plain = line.replace("<tool_call>", "tool_call")  # a special string is ids there, and text here
        for part in plain.split("<|"):
            assert text.encode(part) == theirs.encode(part, add_special_tokens=False).ids, part
            assert text.decode(text.encode(part)) == theirs.decode(text.encode(part), skip_special_tokens=False)


def test_the_vocabulary_is_the_released_one(published, text):
    released = Vocabulary.released()
    text.check(released)
    assert text.size == released.text_size == 151643
    theirs = tokenizers.Tokenizer.from_file(str(published))
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|fim_pad|>", "</tool_call>"):
        assert theirs.token_to_id(name) == released.special_ids[name]
    told = {"<|beginoftext|>": 151665, "<|mask|>": 151666}
    assert {name: released.special_ids[name] for name in told} == told
    assert (released.mask, released.begin_image, released.begin_audio) == (151666, 151667, 151684)
    assert (released.speech.encode(0), released.image.encode(0), released.size) == (151688, 168072, 176264)


def test_a_conversation_is_laid_out_as_qwen_does(published, text):
    theirs = tokenizers.Tokenizer.from_file(str(published))
    for name in ("text_qa", "t2i", "tts"):
        messages = TASKS[name].prompt("一只红色的圆 and a circle")
        ours = ChatLayout(Vocabulary.released(), text).prompt(messages)
        turns = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in messages)
        assert ours.tolist() == theirs.encode(turns + "<|im_start|>assistant\n", add_special_tokens=False).ids
