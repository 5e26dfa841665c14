"""Scenes as training and test records of every task.

A record is a function of (task, index, split). Its prompts are those of the task registry. `meta` holds plain values
for the judges: "task", "split", "index"; the "request" in writing; the "caption" of the scene, if there is one;
"answer", the text of a right answer; "spoken", the text of its speech; "heard", the text of the user's speech, and its
"voice"; the "kind" of question; "wanted" and "background", what a request for a picture says (`wording.meets`);
"hidden", the place to be painted in, and the "hidden_number" of the object that was there, among those "wanted".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.scenes.candidates import draw_candidate
from data_pipelines.scenes.language import (
    EVEN,
    KNOWLEDGE,
    Question,
    answer_phrases,
    caption,
    draw_question,
    held_out_phrases,
)
from data_pipelines.scenes.render import place_box, render
from data_pipelines.scenes.scene import COUNT_WEIGHTS, MAX_INDEX, Scene, generator, sample_scene
from data_pipelines.scenes.speech import ANSWER_VOICE, heard_voice, say
from data_pipelines.scenes.wording import Canonical, Description, Plain, Wording, settled
from data_pipelines.sdvi.records import VOICES, speech_to_image, spoken_vqa
from data_pipelines.sdvi.rules import SpeakablePair, speakable
from omnidiff_jax.config import choose
from omnidiff_jax.records import Record, RejectedRecord, Waveform, stable_id
from omnidiff_jax.tasks.registry import task

# Of what records hold; data built by one version is not mixed with another's.
VERSION = 5
# Relative frequency of one, two and three objects where every object costs a second of speech.
SPOKEN_COUNTS = (0.45, 0.45, 0.10)
SHORT_COUNTS = (0.60, 0.40, 0.0)
# Training asks more often than exams do for what takes long to learn, and seldom for what is learned at once.
TRAINING_WEIGHTS = EVEN | {"where": 2.0, "what": 2.0, "exists": 2.0, "count": 0.5, "background": 0.4}
# Pictures that settle what a request leaves open in one way; in the others anything may be there, so that drawing goes
# on with what is there.
SETTLED = 0.75
KNOWLEDGE_SHARE = {"text_qa": 0.1, "spoken_qa": 0.3}


def speaker(text: str, voice: int | None) -> Waveform:
    """The text in one of the world's voices, or in the one that answers."""
    return say(text, ANSWER_VOICE if voice is None else heard_voice(voice))


def _scene(rng: np.random.Generator, split: str, weights: Sequence[float] = COUNT_WEIGHTS) -> Scene:
    return sample_scene(int(rng.integers(MAX_INDEX)), split, weights)


def _asked(split: str) -> Mapping[str, float]:
    """How often each kind of question is asked."""
    return TRAINING_WEIGHTS if split == "train" else EVEN


def _voice(rng: np.random.Generator) -> int:
    return int(rng.integers(VOICES))


def _described(
    rng: np.random.Generator, split: str, name: str, weights: Sequence[float], background: bool, words: Wording
) -> tuple[str, Question, dict[str, Any]]:
    """A question that words alone answer, what is said (description and question, or general knowledge), and meta."""
    if split != "compositional" and rng.random() < KNOWLEDGE_SHARE[name]:
        question = KNOWLEDGE[rng.integers(len(KNOWLEDGE))]
        return words.question(question), question, {"kind": question.kind}
    scene = _scene(rng, split, weights)
    asked = _asked(split) if background else {**_asked(split), "background": 0.0}
    question = draw_question(scene, rng, asked)
    described = words.scene(scene, whole=True).text if background else caption(scene, background)
    text = f"{described}. {words.question(question)}"
    return text, question, {"kind": question.kind, "caption": caption(scene)}


def _text_qa(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    text, question, meta = _described(rng, split, "text_qa", COUNT_WEIGHTS, True, words)
    messages = task("text_qa").conversation(text, question.answer)
    return Record(identity, "text_qa", messages, meta=meta | {"request": text, "answer": question.answer})


def _captioning(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    scene = _scene(rng, split)
    text = caption(scene)
    request = words.captioning(task("captioning").default_text)
    messages = task("captioning").conversation(request, text)
    meta = {"request": request, "caption": text, "answer": text}
    return Record(identity, "captioning", messages, (render(scene),), meta=meta)


def _vqa(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    scene = _scene(rng, split)
    question = draw_question(scene, rng, _asked(split))
    asked = words.question(question)
    messages = task("vqa").conversation(asked, question.answer)
    meta = {"request": asked, "caption": caption(scene), "kind": question.kind, "answer": question.answer}
    return Record(identity, "vqa", messages, (render(scene),), meta=meta)


def _drawn_of(described: Description, scene: Scene) -> dict[str, Any]:
    """What judges must know of a picture to be drawn."""
    return {
        "caption": caption(scene),
        "wanted": [list(thing) for thing in described.wanted],
        "background": described.background,
    }


def _t2i(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    scene = _scene(rng, split)
    described = words.scene(scene)
    if rng.random() < SETTLED:
        scene, described = settled(scene, described, split)
    messages = task("t2i").conversation(described.text)
    meta = {"request": described.text} | _drawn_of(described, scene)
    return Record(identity, "t2i", messages, (render(scene),), meta=meta)


def _inpainting(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    """A picture by its description, where one object's quadrant is to be painted and the rest is given."""
    scene = _scene(rng, split)
    number = int(rng.integers(len(scene.objects)))
    described = words.scene(scene)
    messages = task("inpainting").conversation(described.text)
    place, picture = scene.objects[number].place, render(scene)
    hidden = {"hidden": place, "hidden_number": number}
    meta = {"request": described.text} | _drawn_of(described, scene) | hidden
    hole = np.zeros(picture.shape[:2], bool)
    hole[place_box(place, len(picture))] = True
    return Record(identity, "inpainting", messages, (picture,), hole=hole, meta=meta)


def _asr(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    scene = _scene(rng, split, SPOKEN_COUNTS)
    drawn = rng.random()
    if drawn < 0.55:
        text = caption(scene, background=bool(rng.random() < 0.5))
    elif drawn < 0.8:
        text = draw_question(scene, rng).text
    else:  # words that no scene has are heard as often as the others
        text = KNOWLEDGE[rng.integers(len(KNOWLEDGE))].text
    voice = _voice(rng)
    messages = task("asr").conversation(answer=text)
    meta = {"answer": text, "heard": text, "voice": voice}
    return Record(identity, "asr", messages, audios=(speaker(text, voice),), meta=meta)


def _tts(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    if rng.random() < 0.5:
        text = caption(_scene(rng, split, SHORT_COUNTS), background=False)
    else:
        phrases = held_out_phrases() if split == "compositional" else answer_phrases()
        text = phrases[rng.integers(len(phrases))]
    messages = task("tts").conversation(text)
    return Record(identity, "tts", messages, audios=(speaker(text, None),), meta={"request": text, "spoken": text})


def _spoken_qa(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    text, question, meta = _described(rng, split, "spoken_qa", SHORT_COUNTS, False, Canonical())
    voice = _voice(rng)
    messages = task("spoken_qa").conversation(answer=question.phrase)
    meta |= {"answer": question.phrase, "spoken": question.phrase, "heard": text, "voice": voice}
    return Record(
        identity, "spoken_qa", messages, audios=(speaker(text, voice), speaker(question.phrase, None)), meta=meta
    )


def _s2i(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    scene = _scene(rng, split, SPOKEN_COUNTS)
    said, picture, voice = caption(scene), render(scene), _voice(rng)
    record = speech_to_image(identity, said, picture, voice, [speaker(said, voice)])
    record.meta.update(_drawn_of(Canonical().scene(scene), scene))
    return record


def _spoken_vqa(rng: np.random.Generator, split: str, identity: int, words: Wording) -> Record:
    """The first candidate that SDVI's rules let through."""
    while True:
        scene = _scene(rng, split)
        candidate = draw_candidate(scene, rng, _asked(split))
        try:
            pair: SpeakablePair = speakable(candidate.question, candidate.answer)
        except RejectedRecord:
            continue
        picture, voice = render(scene), _voice(rng)
        speech = [speaker(pair.question, voice), speaker(pair.answer, None)]
        record = spoken_vqa(identity, pair.question, pair.answer, picture, voice, speech)
        record.meta["caption"] = caption(scene)
        return record


_MAKERS: dict[str, Callable[[np.random.Generator, str, int, Wording], Record]] = {
    "text_qa": _text_qa,
    "captioning": _captioning,
    "vqa": _vqa,
    "t2i": _t2i,
    "asr": _asr,
    "tts": _tts,
    "spoken_qa": _spoken_qa,
    "s2i": _s2i,
    "spoken_vqa": _spoken_vqa,
    "inpainting": _inpainting,
}
TASKS = tuple(_MAKERS)


def make_record(name: str, index: int, split: str, plain: float = 0.0) -> Record:
    """Record number `index` of a task and split.

    Images are uint8 [64, 64, 3], audios 16 kHz; "inpainting" shares its prompt with "t2i".

    Args:
      name: of the task, one of TASKS.
      index: 0 <= index < 2**32.
      split: "train", "test" or "compositional".
      plain: share of requests in plain words (`wording.Plain`), where they are written.

    Raises:
      UserError: no such task.
      ValueError: index or split out of range.
    """
    make = choose(_MAKERS, name, "Scenes task")
    if not 0 <= index < MAX_INDEX:
        raise ValueError(f"index {index} is not in 0..{MAX_INDEX - 1}")
    words: Wording = Canonical()
    if plain:
        words_rng = generator("wording", name, split, index)
        words = Plain(words_rng) if words_rng.random() < plain else words
    record = make(generator("record", name, split, index), split, stable_id("scenes", name, split, index), words)
    record.meta.update(task=name, split=split, index=index)
    return record


class SceneRecords:
    """A random-access source: `size` records of one task and split from `start` on."""

    def __init__(self, name: str, split: str, size: int, start: int = 0, plain: float = 0.0):
        """Args as `make_record`'s; start + size must stay within its range of indices."""
        self.name, self.split, self.size, self.start, self.plain = name, split, size, start, plain

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(f"record {index} of {self.size} {self.split} records of {self.name}")
        return make_record(self.name, self.start + index, self.split, self.plain)
