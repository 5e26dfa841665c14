"""Commons in speech: what is heard, in voices that ask, and what is answered, in the one that answers.

Training joins clips of pieces; exams have whole sentences, in voices that training never heard.
"""

from collections.abc import Callable, Mapping

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
from data_pipelines.commons.things import Thing
from omnidiff_jax.errors import UserError
from omnidiff_jax.records import Record, Waveform
from omnidiff_jax.tasks.registry import task


class _Speech:
    """A voice for a record's question, and the one that answers."""

    def __init__(self, maker: Maker):
        if maker.clips is None:
            raise UserError(
                f"{maker.task} of Commons is spoken; give clips, a folder with speech.json (docs/commons.md)"
            )
        self._clips: Clips = maker.clips
        self._learned = maker.learned
        self.voice = pick(maker.rng, self._clips.voices(maker.learned))
        self.things = [thing for thing in maker.things if not maker.learned or self._clips.says(thing.name)]
        if not self.things:
            raise UserError("names in speech.json leaves no thing that is spoken of; make it larger")
        named = [thing for thing in self.things if self._clips.names(self.voice, thing.name)] if maker.learned else []
        self.named = named or self.things

    def asks(self, sentence: Sentence) -> Waveform:
        return self._said(sentence, self.voice)

    def answers(self, sentence: Sentence) -> Waveform:
        return self._said(sentence, None)

    def _said(self, sentence: Sentence, voice: int | None) -> Waveform:
        pieces = sentence.pieces if self._learned else (sentence.text,)
        return self._clips.joined(pieces, voice)


def _drawing(maker: Maker, speech: _Speech) -> tuple[Sentence, Thing]:
    thing = pick(maker.rng, speech.named)
    return Sentence((pick(maker.rng, DRAWING), thing.one)), thing


def _seen(maker: Maker, speech: _Speech) -> Question:
    return seen_question(maker.rng, Pool(speech.things, speech.named, maker.families))


def _asr(maker: Maker) -> Record:
    speech, drawn = _Speech(maker), maker.rng.random()
    if drawn < 0.45:
        sentence = told_question(maker.rng, speech.named, HEARD_KINDS).sentence
    elif drawn < 0.7:
        sentence, _ = _drawing(maker, speech)
    elif drawn < 0.85:
        sentence = _seen(maker, speech).sentence
    else:
        sentence = Sentence((pick(maker.rng, speech.named).one,))
    meta = {"answer": sentence.said, "heard": sentence.said, "voice": speech.voice}
    return maker.record(task("asr").conversation(answer=sentence.said), audios=(speech.asks(sentence),), meta=meta)


def _tts(maker: Maker) -> Record:
    speech, drawn = _Speech(maker), maker.rng.random()
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
    audios = (speech.asks(question.sentence), speech.answers(Sentence((question.answer,))))
    return maker.record(task(maker.task).conversation(answer=question.answer), images, audios, meta)


def _spoken_qa(maker: Maker) -> Record:
    speech = _Speech(maker)
    return _answered(maker, speech, told_question(maker.rng, speech.named, HEARD_KINDS))


def _spoken_vqa(maker: Maker) -> Record:
    speech = _Speech(maker)
    question = _seen(maker, speech)
    return _answered(maker, speech, question, (maker.shown(question.shown),))


def _s2i(maker: Maker) -> Record:
    speech = _Speech(maker)
    sentence, thing = _drawing(maker, speech)
    meta = {"heard": sentence.said, "voice": speech.voice} | maker.pictured(thing)
    return maker.record(task("s2i").conversation(), (maker.drawn(thing),), (speech.asks(sentence),), meta)


MAKERS: Mapping[str, Callable[[Maker], Record]] = {
    "asr": _asr,
    "tts": _tts,
    "spoken_qa": _spoken_qa,
    "s2i": _s2i,
    "spoken_vqa": _spoken_vqa,
}
