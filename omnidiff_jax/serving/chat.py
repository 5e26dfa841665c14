"""POST /v1/chat/completions: a conversation of text, pictures and speech, answered in one of four forms."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnidiff_jax.answering.queries import Query
from omnidiff_jax.sampling.reveal import Revise
from omnidiff_jax.serving.bodies import AudioPart, ChatRequest, Given, ImagePart, Part, Said, TextPart
from omnidiff_jax.serving.canvases import Prefix, canvas_of
from omnidiff_jax.serving.events import DONE, PULSE, Streamed, event
from omnidiff_jax.serving.failures import Failure, unsupported
from omnidiff_jax.serving.pictures import file_of, read_picture
from omnidiff_jax.serving.reading import check_text, data_of, decoded, json_body
from omnidiff_jax.serving.service import Service, Watching, off_the_loop
from omnidiff_jax.serving.sound import FORMATS, read_sound
from omnidiff_jax.serving.tickets import Answered

# `modalities` -> the form of the answer.
_FORMS = {
    frozenset(["text"]): "text",
    frozenset(["text", "audio"]): "text_and_speech",
    frozenset(["audio"]): "speech",
    frozenset(["image"]): "image",
}
_REASONS = {"end": "stop", "length": "length", "steps": "length"}
_KEPT = 3600  # seconds: `expires_at` of speech, which is not kept here at all


async def complete(request: Request, service: Service) -> Response:
    """Answers a conversation, at once or as a stream."""
    body = await json_body(request, ChatRequest)
    service.check_model(body.model)
    form = _FORMS.get(frozenset(body.modalities or ["text"]))
    if form is None:
        known = " or ".join(str(sorted(known)) for known in _FORMS)
        raise unsupported("modalities", f"{body.modalities} is no form of answer here; it is {known}")
    if body.audio is not None and form not in ("speech", "text_and_speech"):
        raise unsupported("audio", 'is for answers that are spoken; ask for modalities ["text", "audio"]')
    if body.stream_options is not None and not body.stream:
        raise unsupported("stream_options", "is for streams; set stream")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise unsupported("max_tokens", "stands beside max_completion_tokens; leave one out")
    if form == "image" and (body.max_tokens or body.max_completion_tokens):
        name = "max_tokens" if body.max_tokens else "max_completion_tokens"
        raise unsupported(name, "a picture has as many positions as it has codes; leave it out")
    turns = await off_the_loop(_turns, body, service)
    queries = await service.queries(
        body,
        {"messages": turns, "answer": form},
        service.check_count(body.n),
        body.max_completion_tokens or body.max_tokens,
    )
    written = _Completion(body, service)
    if body.stream:
        watching = service.watched(queries)
        return Streamed(written.stream(queries, watching), watching.close)
    answers = await service.answers(request, queries)
    return JSONResponse(await off_the_loop(written.whole, answers))


class _Completion:
    """Writes one completion's objects."""

    def __init__(self, body: ChatRequest, service: Service):
        self._service, self._body = service, body
        self._options = body.stream_options
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._format = body.audio.format if body.audio is not None else "wav"

    def whole(self, answers: Sequence[Answered]) -> dict[str, Any]:
        """The completion of a request that is not streamed."""
        choices = []
        for index, answered in enumerate(answers):
            response = answered.response
            message: dict[str, Any] = {"role": "assistant", "content": response.text or None, "refusal": None}
            if response.audio is not None:
                message |= {"content": None, "audio": self._audio(answered)}
            if response.image is not None:
                message["images"] = [self._image(answered)]
            reason = _REASONS[response.finish]
            choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": None})
        notes = sorted({answered.note for answered in answers if answered.note})
        extra = {"warnings": notes} if notes else {}
        return self._object("chat.completion", choices, usage=_usage(answers), **extra)

    async def stream(self, queries: Sequence[Query], watching: Watching) -> AsyncIterator[bytes]:
        """Chunks: the finished prefix of a text as it grows, media when they are there; canvases where asked for."""
        codecs = self._service.model.generator.codecs
        steady = not isinstance(queries[0].decoding.sampler.reveal, Revise)
        prefixes = [Prefix(codecs, steady and query.answer == "text") for query in queries]
        answers: list[Answered] = []
        for index in range(len(queries)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for one in watching:
            if one.partial is not None:
                if text := prefixes[one.number].grown(one.partial.tokens):
                    yield self._chunk(one.number, {"content": text})
                if self._options is not None and self._options.include_canvas:
                    shown = await asyncio.to_thread(canvas_of, one.partial, queries[one.number].answer, codecs)
                    yield event(self._object(_CHUNK, [], canvas={"index": one.number, **shown}), "canvas")
            elif one.answer is not None:
                answers.append(one.answer)
                delta = await asyncio.to_thread(self._rest, one.answer, prefixes[one.number])
                if delta:
                    yield self._chunk(one.number, delta)
                yield self._chunk(one.number, {}, _REASONS[one.answer.response.finish])
            else:
                yield PULSE
        if self._options is not None and self._options.include_usage:
            yield event(self._object(_CHUNK, [], usage=_usage(answers)))
        yield DONE

    def _rest(self, answered: Answered, prefix: Prefix) -> dict[str, Any]:
        """What the stream has not said of an answer."""
        response = answered.response
        delta: dict[str, Any] = {}
        if response.audio is not None:
            delta["audio"] = self._audio(answered)
        elif text := prefix.rest(response.text):
            delta["content"] = text
        if response.image is not None:
            delta["images"] = [self._image(answered)]
        return delta

    def _audio(self, answered: Answered) -> dict[str, Any]:
        assert answered.response.audio is not None
        data = FORMATS[self._format][1](answered.response.audio)
        return {
            "id": f"audio_{uuid.uuid4().hex}",
            "data": base64.b64encode(data).decode(),
            "transcript": answered.response.text,
            "expires_at": self._created + _KEPT,
        }

    def _image(self, answered: Answered) -> dict[str, Any]:
        assert answered.response.image is not None
        data = base64.b64encode(file_of(answered.response.image, "png")).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event(self._object(_CHUNK, [choice]))

    def _object(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        name = self._service.name
        return {"id": self._id, "object": kind, "created": self._created, "model": name, "choices": choices, **more}


_CHUNK = "chat.completion.chunk"


def _usage(answers: Sequence[Answered]) -> dict[str, int]:
    given, filled = max((a.prompt for a in answers), default=0), sum(a.filled for a in answers)
    return {"prompt_tokens": given, "completion_tokens": filled, "total_tokens": given + filled}


def _turns(body: ChatRequest, service: Service) -> list[dict[str, Any]]:
    """The conversation as `answering.conversation.read_turns` takes it, its media read.

    Raises:
        Failure, UserError: too many turns or media, or one that cannot be used.
    """
    limits, turns, media = service.limits, [], 0
    if len(body.messages) > limits.turns:
        raise Failure(
            f"messages has {len(body.messages)} turns, over the limit of {limits.turns}", param="messages", status=413
        )
    for number, turn in enumerate(body.messages):
        where = f"messages[{number}]"
        parts = _parts(turn)
        media += sum(not isinstance(part, TextPart) for part in parts)
        if media > limits.media:
            raise Failure(f"messages hold more than {limits.media} media", param="messages", status=413)
        content = [_part(part, f"{where}.content[{i}]", service) for i, part in enumerate(parts)]
        turns.append({"role": "system" if turn.role == "developer" else turn.role, "content": content})
    return turns


def _parts(turn: Given | Said) -> list[Part]:
    content = turn.content or []
    parts: list[Part] = [TextPart(type="text", text=content)] if isinstance(content, str) else list(content)
    if isinstance(turn, Said):
        if turn.audio is not None:
            if turn.audio.transcript and not parts:
                parts.append(TextPart(type="text", text=turn.audio.transcript))
            sound = {"data": turn.audio.data, "format": "wav"}
            parts.append(AudioPart.model_validate({"type": "input_audio", "input_audio": sound}))
        parts += turn.images or []
    return parts


def _part(part: Part, where: str, service: Service) -> dict[str, Any]:
    limits = service.limits
    if isinstance(part, TextPart):
        check_text(part.text, f"{where}.text", limits)
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        name = f"{where}.image_url.url"
        content = data_of(part.image_url.url, name)
        if content is None:
            content = service.trusted.fetch(part.image_url.url, name, limits.body)
        return {"type": "image", "image": read_picture(content, f"({name})", limits)}
    name = f"{where}.input_audio.data"
    return {"type": "audio", "audio": read_sound(decoded(part.input_audio.data, name), f"({name})", limits)}
