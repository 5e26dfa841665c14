"""POST /v1/audio/speech and /v1/audio/transcriptions: text to speech, and speech to text."""

import base64
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from omnidiff_jax.answering.queries import Query
from omnidiff_jax.sampling.reveal import Revise
from omnidiff_jax.serving.bodies import SpeechRequest, TranscriptionRequest
from omnidiff_jax.serving.canvases import Prefix, canvas_of
from omnidiff_jax.serving.events import PULSE, Streamed, event
from omnidiff_jax.serving.failures import Failure, unsupported
from omnidiff_jax.serving.reading import check_text, form_body, json_body
from omnidiff_jax.serving.service import Service, Watching, off_the_loop
from omnidiff_jax.serving.sound import FORMATS, read_sound
from omnidiff_jax.serving.tickets import Answered

# OpenAI's own limit of `input`.
_LONGEST = 4096
# Of a response that is nothing but the medium: why the answer ended.
FINISH_HEADER = "X-Omnidiff-Finish"


async def speak(request: Request, service: Service) -> Response:
    """Speaks a text."""
    body = await json_body(request, SpeechRequest)
    service.check_model(body.model)
    check_text(body.input, "input", service.limits)
    if len(body.input) > _LONGEST:
        raise Failure(
            f"input has {len(body.input)} characters, over the limit of {_LONGEST}",
            param="input",
            code="string_above_max_length",
        )
    form = body.response_format or "wav"
    queries = await service.queries(body, {"task": "tts", "text": body.input}, length=body.length)
    if body.stream_format == "sse":
        watching = service.watched(queries)
        return Streamed(_spoken(watching, form), watching.close)
    (answered,) = await service.answers(request, queries)
    content = await off_the_loop(_sound, answered, form)
    return Response(content, media_type=FORMATS[form][0], headers={FINISH_HEADER: answered.response.finish})


async def _spoken(watching: Watching, form: str) -> AsyncIterator[bytes]:
    """Speech is one piece: no part of it is finished before the last step."""
    async for one in watching:
        if one.answer is not None:
            data = base64.b64encode(await off_the_loop(_sound, one.answer, form)).decode()
            yield event({"type": "speech.audio.delta", "audio": data}, "speech.audio.delta")
            done = {"type": "speech.audio.done", "usage": _usage(one.answer), "finish": one.answer.response.finish}
            yield event(done, "speech.audio.done")
        elif one.partial is None:
            yield PULSE


def _sound(answered: Answered, form: str) -> bytes:
    if answered.response.audio is None:
        raise Failure("the model said nothing; ask in other words", status=422, code="no_speech")
    return FORMATS[form][1](answered.response.audio)


async def transcribe(request: Request, service: Service) -> Response:
    """Writes down what a recording says."""
    body, files = await form_body(request, TranscriptionRequest, {"file": True})
    service.check_model(body.model)
    if body.stream and body.response_format == "verbose_json":
        raise unsupported("response_format", "verbose_json cannot be streamed; ask for json")
    if body.include_canvas and not body.stream:
        raise unsupported("include_canvas", "is for streams; set stream")
    heard = await off_the_loop(read_sound, files["file"], "(file)", service.limits)
    queries = await service.queries(body, {"task": "asr", "audio": heard}, length=body.length)
    if body.stream:
        watching = service.watched(queries)
        return Streamed(_heard(service, queries[0], watching, bool(body.include_canvas)), watching.close)
    (answered,) = await service.answers(request, queries)
    text, finish = answered.response.text, answered.response.finish
    if body.response_format == "text":
        return PlainTextResponse(text + "\n", headers={FINISH_HEADER: finish})
    told: dict[str, Any] = {"text": text, "usage": _usage(answered), "finish": finish}
    if body.response_format == "verbose_json":
        # Nothing here tells languages or times apart.
        told = {"task": "transcribe", "language": "und", "duration": round(heard.seconds, 3), **told}
    return JSONResponse(told)


async def _heard(service: Service, query: Query, watching: Watching, canvases: bool) -> AsyncIterator[bytes]:
    codecs = service.model.generator.codecs
    prefix = Prefix(codecs, not isinstance(query.decoding.sampler.reveal, Revise))
    name = "transcript.text.delta"
    async for one in watching:
        if one.partial is not None:
            if canvases:
                yield event(
                    {"type": "canvas", "canvas": {"index": 0, **canvas_of(one.partial, "text", codecs)}}, "canvas"
                )
            if text := prefix.grown(one.partial.tokens):
                yield event({"type": name, "delta": text}, name)
        elif one.answer is not None:
            text, finish = one.answer.response.text, one.answer.response.finish
            if rest := prefix.rest(text):
                yield event({"type": name, "delta": rest}, name)
            done = {"type": "transcript.text.done", "text": text, "usage": _usage(one.answer), "finish": finish}
            yield event(done, "transcript.text.done")
        else:
            yield PULSE


def _usage(answered: Answered) -> dict[str, Any]:
    total = answered.prompt + answered.filled
    return {
        "type": "tokens",
        "input_tokens": answered.prompt,
        "output_tokens": answered.filled,
        "total_tokens": total,
    }
