"""A model that answers: the object that `omnidiff_jax.load` gives."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Never

import numpy as np
from PIL import Image

from omnidiff_jax.answering import film as films
from omnidiff_jax.answering.asked import SEEDS, group, several, switch, told_of, whole, words
from omnidiff_jax.answering.conversation import conversation_query, read_turns
from omnidiff_jax.answering.generator import Generator
from omnidiff_jax.answering.media import Audio, to_audio, to_hole, to_image
from omnidiff_jax.answering.queries import SHORT, Query, Request, Response, adjusted, request_name, task_query
from omnidiff_jax.config import nearest, suggest
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.image import is_plain
from omnidiff_jax.tasks.registry import TASKS, AnswerKind, Decoding, task

_OPTIONS = ("seed", "settings", "film")
_ASKED = ("text", "image", "audio", "hole", *_OPTIONS)
_SAID = ("answer", *_OPTIONS)
_TASK, _CONVERSATION = ("task", *_ASKED), ("messages", *_SAID)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
        text: "" if the answer has none.
        image: or None.
        audio: or None.
        finish: "end" where the model ended its answer, "length" where all positions were filled without an end (it may
            be cut), "steps" where positions are still masked.
        steps: calls of the model.
        film: a frame a step, pictures or texts, where one was asked for.
    """

    text: str
    image: Image.Image | None
    audio: Audio | None
    finish: str
    steps: int
    film: list[Any] | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self.text and self.image is None and self.audio is None

    @property
    def blank(self) -> bool:
        """Whether its picture shows nothing: one colour all over, but for what a tokenizer cannot draw even."""
        return self.image is not None and is_plain(np.asarray(self.image))


class Model:
    """A trained model with its tokenizers, ready to answer any task or conversation.

    Attributes:
        generator: decodes batches.
        decoding: settings by task.
        name: where it came from.
    """

    def __init__(self, generator: Generator, decoding: Mapping[str, Decoding], name: str):
        self.generator, self.decoding, self.name = generator, decoding, name

    def answer(
        self,
        task: str,
        *,
        text: str = "",
        image: Any = None,
        audio: Any = None,
        hole: Any = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        film: bool = False,
        **unknown: Never,
    ) -> Answer:
        """Answers one request of a task.

        Args:
            task: a name of `tasks.registry.TASKS`.
            text: the request, question or caption.
            image: to look at or paint in: a path, bytes, a PIL image or an array uint8 [H, W, 3].
            audio: to listen to: a path, bytes or (samples, rate).
            hole: part of the picture to paint: (left, top, right, bottom) in pixels of the model's picture, or bool
                [size, size].
            seed: of the sampling noise, from 0 to 2^32 - 1.
            settings: of decoding, for this request: `{"steps": 8, "temperature": 0.7, "guidance": 1.5, "length": 40}`,
                or dotted names of `Decoding`.
            film: also return the answer after every step, as a server with as many rows shows it.

        Raises:
            UserError: an unknown task, argument or setting, an input missing, not used or unusable, too long a request.
        """
        _refuse(unknown, _ASKED, "answer")
        request = {"task": task, "text": text, "image": image, "audio": audio, "hole": hole}
        return self.answer_many([request | {"seed": seed, "settings": settings, "film": film}])[0]

    def answer_many(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answers requests of any tasks and conversations, those decoded alike in batches; in order.

        Args:
            requests: each with the arguments of `answer`, or of `chat`, by name.

        Raises:
            UserError: as `answer` and `chat`; where there are several, it begins with the request's number.
        """
        example = '[{"task": "t2i", "text": "a red circle"}]'
        asked = several(requests, "requests", "mappings", example)
        queries, shown = [], []
        for number, request in enumerate(asked, start=1):
            where = request_name(number) if len(asked) > 1 else "the request"
            if not isinstance(request, Mapping):
                raise UserError(f"{where} must be a mapping, as in {example}, not {type(request).__name__}")
            known = _CONVERSATION if "messages" in request else _TASK
            _refuse(request, (*known, "request_id"), where)
            with told_of(where if len(asked) > 1 else ""):
                shown.append(switch(request.get("film"), "film"))
                queries.append(dataclasses.replace(self.query(request), number=number if len(asked) > 1 else 0))
        responses: list[Response | None] = [None] * len(queries)
        for filmed, decode in ((False, self.generator.decode), (True, self.generator.film)):
            chosen = [i for i, film in enumerate(shown) if film == filmed]
            for i, response in zip(chosen, decode([queries[i] for i in chosen]), strict=True):
                responses[i] = response
        return [self._finished(r, query.answer) for r, query in zip(responses, queries, strict=True) if r is not None]

    def chat(
        self,
        messages: Sequence[Any],
        answer: str = "text",
        *,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        film: bool = False,
        **unknown: Never,
    ) -> Answer:
        """Answers a conversation.

        Args:
            messages: the turns so far, the last one the user's; see `conversation.read_turns`. An earlier answer may
                stand for an assistant's turn.
            answer: "text", "speech", "image" or "text_and_speech".
            seed, settings, film: as for `answer`.

        Raises:
            UserError: an unknown argument or setting, turns that cannot be read, or too long a conversation.
        """
        _refuse(unknown, _SAID, "chat")
        request = {"messages": messages, "answer": answer, "seed": seed, "settings": settings, "film": film}
        return self.answer_many([request])[0]

    def query(self, request: Mapping[str, Any]) -> Query:
        """What a request asks, its media read: the arguments of `answer`, or of `chat`, by name, and `request_id`.

        Raises:
            UserError: as `answer` and `chat`.
        """
        settings = group(request.get("settings"), "settings", '{"steps": 8}')
        seed = whole(request.get("seed", 0), "seed", 0, SEEDS)
        identity = whole(request.get("request_id", 0), "request_id", 0, SEEDS)
        if "messages" in request:
            turns = read_turns(request["messages"])
            answer = request.get("answer", "text")
            query = conversation_query(turns, answer, self.decoding, seed=seed, request_id=identity)
        elif "task" in request:
            chosen = task(words(request["task"], "task"))
            asked = Request(
                text="" if request.get("text") is None else words(request["text"], "text"),
                image=None if request.get("image") is None else to_image(request["image"]),
                audio=None if request.get("audio") is None else to_audio(request["audio"]),
                hole=None if request.get("hole") is None else to_hole(request["hole"], self.picture_size),
                request_id=identity,
            )
            query = task_query(chosen, asked, self.decoding[chosen.name], seed)
        else:
            raise UserError(f"the request names neither a task ({suggest('', TASKS)}) nor messages")
        if "length" in settings and query.answer in ("image", "hole"):
            raise UserError("the answer has the length of a picture; leave out the setting length")
        return dataclasses.replace(query, decoding=adjusted(query.decoding, settings))

    @property
    def picture_size(self) -> int:
        """Side in pixels of the pictures that it draws."""
        return self.generator.codecs.assistant_image_size

    def _finished(self, response: Response, kind: AnswerKind) -> Answer:
        codecs = self.generator.codecs
        frames = None if response.strip is None else films.frames(response.strip, kind, codecs)
        if frames is not None and kind != "text":
            frames = [Image.fromarray(frame) for frame in frames]
        return Answer(
            text=response.text,
            image=None if response.image is None else Image.fromarray(response.image),
            audio=None if response.audio is None else Audio(response.audio.samples, response.audio.rate),
            finish=response.finish,
            steps=response.steps,
            film=frames,
        )


def _refuse(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises a `UserError` for the first name that is not known, with the nearest; a setting is shown in its place.

    What only the other form of request takes has no nearest: all is named that this one takes.
    """
    for name in names:
        if name not in known:
            close = nearest(name, [*known, *SHORT, "length"])
            setting = close and close not in known
            hint = f"did you mean settings={{{close!r}: …}}?" if setting else suggest(name, known)
            if name in _TASK or name in _CONVERSATION:
                hint = f"this takes {', '.join(known)}"
            raise UserError(f"{where}: unknown argument {name!r}; {hint}")
