"""Commons in speech: what is heard, in voices that ask, and what is answered, in the one that answers.

Training joins clips of pieces, and half of the time hears one of a fixed number of whole sentences: fluent speech is
not its words side by side. Exams have whole sentences alone, in voices that training never heard.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.commons.maker import Maker
from data_pipelines.commons.questions import (
    DRAWING,
    HEARD_KINDS,
    NUMBERS,
    THIS_IS,
    Pool,
    Question,
    Sentence,
    pick,
    seen_question,
    told_question,
)
from data_pipelines.commons.speech import Clips
from data_pipelines.commons.things import Family, Thing, World
from data_pipelines.scenes.scene import generator
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Record, Waveform
from omnidiff_jax.tasks.registry import task

_WHOLE = 0.5  # of what is heard in training, where there are whole sentences of its kind
# Learned voices at several speeds count as more voices (Ko et al. 2015, "Audio augmentation for speech recognition").
_PACES = (0.9, 1.0, 1.0, 1.1, 1.2)
_LONGEST_GAP = 0.06  # seconds between pieces


class _Speech:
    """A voice for a record's question, and the one that answers.

    Attributes:
        rng: what is asked is drawn from it.
        voice: that asks.
        things: that are spoken of.
        named: of those, the ones that the question may name.
    """

    def __init__(self, rng: np.random.Generator, clips: Clips, things: Sequence[Thing], learned: bool, whole: bool):
        """Draws who asks.

        Args:
            rng: a stream.
            clips: that are there.
            things: of the split.
            learned: whether the voice is one that is learned.
            whole: whether the question is one clip.

        Raises:
            UserError: nothing is spoken of.
        """
        self.rng, self._clips, self._learned, self._whole = rng, clips, learned, whole
        self.voice = pick(rng, clips.voices(learned))
        self.things = [thing for thing in things if not learned or clips.says(thing.name)]
        if not self.things:
            raise UserError("names in speech.json leaves no thing that is spoken of; make it larger")
        apart = [thing for thing in self.things if clips.names(self.voice, thing.name)] if not whole else []
        self.named = apart or self.things

    @classmethod
    def of(cls, maker: Maker, family: str = "") -> "_Speech":
        """That of a record; `family` is one of FAMILIES, whose whole sentences it may have in training."""
        clips, rng = maker.clips, maker.rng
        if clips is None:
            raise UserError(
                f"{maker.task} of Commons is spoken; give clips, a folder with speech.json (docs/commons.md)"
            )
        count = _count(clips, family) if maker.learned and family else 0
        if count and rng.random() < _WHOLE:
            return cls(_stream(family, int(rng.integers(count))), clips, maker.things, True, True)
        return cls(rng, clips, maker.things, maker.learned, not maker.learned)

    def asks(self, sentence: Sentence, rng: np.random.Generator) -> Waveform:
        """The question; learned voices at a pace and with pauses that `rng` draws."""
        pieces = (sentence.text,) if self._whole else sentence.pieces
        if not self._learned:
            return self._clips.joined(pieces, self.voice)
        return self._clips.joined(pieces, self.voice, pick(rng, _PACES), rng.uniform(0.0, _LONGEST_GAP))

    def answers(self, sentence: Sentence) -> Waveform:
        return self._clips.joined(sentence.pieces if self._learned else (sentence.text,), None)


def _told(speech: _Speech) -> Question:
    return told_question(speech.rng, speech.named, HEARD_KINDS)


def _drawing(speech: _Speech) -> tuple[Sentence, Thing]:
    thing = pick(speech.rng, speech.named)
    return Sentence((pick(speech.rng, DRAWING), thing.one)), thing


def _seen(speech: _Speech, families: Sequence[Family]) -> Question:
    return seen_question(speech.rng, Pool(speech.things, speech.named, families))


# What is asked, and its share of whole sentences. Of what is asked about a picture they are for ASR alone: one that
# always came with the same picture would be answered without it.
FAMILIES: Mapping[str, tuple[float, Callable[[_Speech, Sequence[Family]], Sentence]]] = {
    "told": (0.5, lambda speech, _: _told(speech).sentence),
    "drawing": (0.35, lambda speech, _: _drawing(speech)[0]),
    "seen": (0.15, lambda speech, families: _seen(speech, families).sentence),
}


def _count(clips: Clips, family: str) -> int:
    return round(FAMILIES[family][0] * clips.sentences)


def _stream(family: str, number: int) -> np.random.Generator:
    return generator("commons sentence", family, number)


def whole_sentences(world: World, clips: Clips) -> Iterator[tuple[str, int]]:
    """Text and voice of every whole sentence that training may hear."""
    maker = Maker(world, "asr", "train", _stream("", 0), 0, clips)
    for family, (_, ask) in FAMILIES.items():
        for number in range(_count(clips, family)):
            speech = _Speech(_stream(family, number), clips, maker.things, True, True)
            yield ask(speech, maker.families).text, speech.voice


def _asr(maker: Maker) -> Record:
    drawn = maker.rng.random()
    family = "told" if drawn < 0.45 else "drawing" if drawn < 0.7 else "seen" if drawn < 0.85 else ""
    speech = _Speech.of(maker, family)
    if family:
        sentence = FAMILIES[family][1](speech, maker.families)
    else:
        sentence = Sentence((pick(speech.rng, speech.named).one,))
    meta = {"answer": sentence.said, "heard": sentence.said, "voice": speech.voice}
    audios = (speech.asks(sentence, maker.rng),)
    return maker.record(task("asr").conversation(answer=sentence.said), audios=audios, meta=meta)


def _tts(maker: Maker) -> Record:
    speech, drawn = _Speech.of(maker), maker.rng.random()
    if drawn < 0.8:
        name = pick(maker.rng, speech.things).one
        sentence = Sentence((THIS_IS, name) if drawn < 0.4 else (name,))
    else:
        sentence = Sentence((pick(maker.rng, (*maker.world.categories, *NUMBERS, "yes", "no")),))
    meta = {"request": sentence.said, "spoken": sentence.said}
    return maker.record(task("tts").conversation(sentence.said), audios=(speech.answers(sentence),), meta=meta)


def _answered(maker: Maker, speech: _Speech, question: Question, images: tuple = ()) -> Record:
    meta = maker.answered(question) | {
        "spoken": question.answer,
        "heard": question.sentence.said,
        "voice": speech.voice,
    }
    audios = (speech.asks(question.sentence, maker.rng), speech.answers(Sentence((question.answer,))))
    return maker.record(task(maker.task).conversation(answer=question.answer), images, audios, meta)


def _spoken_qa(maker: Maker) -> Record:
    speech = _Speech.of(maker, "told")
    return _answered(maker, speech, _told(speech))


def _spoken_vqa(maker: Maker) -> Record:
    speech = _Speech.of(maker)
    question = _seen(speech, maker.families)
    return _answered(maker, speech, question, (maker.shown(question.shown),))


def _s2i(maker: Maker) -> Record:
    speech = _Speech.of(maker, "drawing")
    sentence, thing = _drawing(speech)
    meta = {"heard": sentence.said, "voice": speech.voice} | maker.pictured(thing)
    audios = (speech.asks(sentence, maker.rng),)
    return maker.record(task("s2i").conversation(), (maker.drawn(thing),), audios, meta)


MAKERS: Mapping[str, Callable[[Maker], Record]] = {
    "asr": _asr,
    "tts": _tts,
    "spoken_qa": _spoken_qa,
    "s2i": _s2i,
    "spoken_vqa": _spoken_vqa,
}
