"""POST /v1/images/generations and /v1/images/edits: pictures from words, and holes in pictures filled."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnidiff_jax.answering.film import pictures
from omnidiff_jax.answering.queries import Query
from omnidiff_jax.sampling.plan import total_steps
from omnidiff_jax.serving.bodies import Drawing, EditRequest, ImageRequest
from omnidiff_jax.serving.canvases import canvas_of
from omnidiff_jax.serving.events import PULSE, Streamed, event
from omnidiff_jax.serving.failures import Failure, unsupported
from omnidiff_jax.serving.pictures import file_of, read_hole
from omnidiff_jax.serving.reading import check_text, form_body, json_body
from omnidiff_jax.serving.service import Service, Watching, off_the_loop
from omnidiff_jax.serving.tickets import Answered

# A picture of the model -> what the client gets, uint8 [H, W, 3] or a Pillow image.
Finish = Callable[[np.ndarray], Any]


async def generate(request: Request, service: Service) -> Response:
    """Draws pictures of a prompt."""
    body = await json_body(request, ImageRequest)
    side = service.model.picture_size
    _check(body, service, f"{side}x{side}")
    asked = {"task": "t2i", "text": body.prompt}
    return await _drawn(request, service, body, asked, lambda drawn: drawn, f"{side}x{side}", "image_generation")


async def edit(request: Request, service: Service) -> Response:
    """Fills a hole in a picture by a prompt, in the picture's own pixels."""
    body, files = await form_body(request, EditRequest, {"image": True, "mask": False})
    hole = await off_the_loop(read_hole, files["image"], files.get("mask"), service.limits)
    height, width = hole.edit.shape
    _check(body, service, f"{width}x{height}")
    seen, part = await off_the_loop(hole.seen, service.model.picture_size)
    asked = {"task": "inpainting", "text": body.prompt, "image": seen, "hole": part}
    return await _drawn(request, service, body, asked, hole.filled, f"{width}x{height}", "image_edit")


def _check(body: Drawing, service: Service, size: str) -> None:
    service.check_model(body.model)
    check_text(body.prompt, "prompt", service.limits)
    if body.size not in (None, "auto", size):
        raise unsupported("size", f"{body.size} cannot be drawn here; it is {size}, or auto")
    if body.partial_images is not None and not body.stream:
        raise unsupported("partial_images", "is for streams; set stream")
    if body.include_canvas and not body.stream:
        raise unsupported("include_canvas", "is for streams; set stream")
    if body.stream and (body.n or 1) > 1:
        raise unsupported("n", f"{body.n} pictures cannot be streamed in one request; ask for one, or without stream")


async def _drawn(
    request: Request, service: Service, body: Drawing, asked: dict[str, Any], finish: Finish, size: str, kind: str
) -> Response:
    """The pictures of a task's request, each through `finish`."""
    queries = await service.queries(body, asked, service.check_count(body.n))
    about = _About(body, size, kind, finish)
    if body.stream:
        watching = service.watched(queries)
        return Streamed(about.stream(service, queries[0], watching), watching.close)
    answers = await service.answers(request, queries)
    return JSONResponse(await off_the_loop(about.whole, answers))


class _About:
    """Writes the objects of one request."""

    def __init__(self, body: Drawing, size: str, kind: str, finish: Finish):
        self._kind, self._finish = kind, finish
        self._count, self._canvas = body.partial_images or 0, bool(body.include_canvas)
        self._about = {
            "size": size,
            "quality": "auto",
            "background": "opaque",
            "output_format": body.output_format or "png",
        }

    def whole(self, answers: Sequence[Answered]) -> dict[str, Any]:
        data = [{"b64_json": self._picture(_image(answered))} for answered in answers]
        return {"created": int(time.time()), "data": data, **self._about, "usage": _usage(answers)}

    async def stream(self, service: Service, query: Query, watching: Watching) -> AsyncIterator[bytes]:
        """`partial_images` canvases, spread over the steps from the first on, then the picture; beside them every
        canvas as the model has it, where asked for."""
        codecs = service.model.generator.codecs
        due: list[int] = []
        sent = 0
        async for one in watching:
            if one.partial is not None and self._canvas:
                canvas = await asyncio.to_thread(canvas_of, one.partial, query.answer, codecs)
                yield event({"type": "canvas", "canvas": {"index": 0, **canvas}}, "canvas")
            if one.partial is not None and self._count:
                tokens = one.partial.tokens
                if not due:
                    masks = int((tokens == codecs.layout.vocabulary.mask).sum()) + one.partial.step
                    due = _due(self._count, total_steps(query.decoding.sampler, masks))
                if sent < len(due) and one.partial.step >= due[sent]:
                    shown = (await asyncio.to_thread(pictures, tokens[None], codecs))[0]
                    yield await self._event("partial_image", shown, partial_image_index=sent)
                    sent += 1
            elif one.answer is not None:
                yield await self._event("completed", _image(one.answer), usage=_usage([one.answer]))
            elif one.partial is None:
                yield PULSE

    async def _event(self, name: str, picture: np.ndarray, **more: Any) -> bytes:
        kind = f"{self._kind}.{name}"
        data = await asyncio.to_thread(self._picture, picture)
        return event({"type": kind, "b64_json": data, "created_at": int(time.time()), **self._about, **more}, kind)

    def _picture(self, picture: np.ndarray) -> str:
        return base64.b64encode(file_of(self._finish(picture), self._about["output_format"])).decode()


def _due(count: int, steps: int) -> list[int]:
    """Steps after which a canvas is shown: the first, and others evenly after it."""
    return sorted({1 + round(i * steps / count) for i in range(count)})


def _image(answered: Answered) -> np.ndarray:
    if answered.response.image is None:
        raise Failure("the model drew no whole picture; ask in other words", status=422, code="no_picture")
    return answered.response.image


def _usage(answers: Sequence[Answered]) -> dict[str, Any]:
    given, filled = max(answered.prompt for answered in answers), sum(answered.filled for answered in answers)
    return {
        "input_tokens": given,
        "input_tokens_details": {"text_tokens": given, "image_tokens": 0},
        "output_tokens": filled,
        "total_tokens": given + filled,
    }
