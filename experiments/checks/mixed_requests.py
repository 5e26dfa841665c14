"""Requests of several tasks, as the library takes them and as OpenAI's client asks a server for the same."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from omnidiff_jax.answering.media import to_image
from omnidiff_jax.answering.model import Model
from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.records import Waveform

KINDS = ("t2i", "vqa", "asr", "tts", "inpainting")

Ask = Callable[[Any], Awaitable[Any]]


def requests_of(kind: str, count: int) -> list[dict[str, Any]]:
    """Requests of a task as `Model.answer_many` takes them, media as files' bytes; always the same."""
    rng = np.random.default_rng(KINDS.index(kind))
    made = []
    for number in range(count):
        size, colour = ("small", "large")[number % 2], ("red", "blue", "green")[number % 3]
        request: dict[str, Any] = {"task": kind, "seed": number, "text": f"{size} {colour} circle top left"}
        if kind == "vqa":
            request["text"] = "what colour is the circle"
        if kind in ("vqa", "inpainting"):
            squares = rng.integers(0, 256, (4, 4, 3), np.uint8)
            request["image"] = png_bytes(np.kron(squares, np.ones((16, 16, 1), np.uint8)))
        if kind == "asr":
            del request["text"]
            request["audio"] = wav_bytes(Waveform((0.1 * rng.standard_normal(16_000)).astype(np.float32), 16_000))
        if kind == "inpainting":
            request["hole"] = (0, 0, 32, 32)
        made.append(request)
    return made


def answered_by(model: Model, requests: list[dict[str, Any]]) -> list[Any]:
    """What a model answers without a server, in files as a server sends them."""
    files: list[Any] = []
    for answer in model.answer_many(requests):
        if answer.image is not None:
            files.append(base64.b64encode(png_bytes(np.asarray(answer.image))))
        else:
            files.append(answer.audio.wav() if answer.audio is not None else answer.text)
    return files


def asked_of(name: str, request: dict[str, Any]) -> Ask:
    """The same request to a server, of the model it calls `name`; gives what can be compared."""
    seed = {"seed": request["seed"]}

    async def draw(client: Any) -> Any:
        drawn = await client.images.generate(model=name, prompt=request["text"], extra_body=seed)
        return drawn.data[0].b64_json

    async def edit(client: Any) -> Any:
        from omnidiff_jax.serving.pictures import file_of, with_alpha

        picture = to_image(request["image"])
        left, top, right, bottom = request["hole"]
        alpha = np.full(picture.shape[:2], 255, np.uint8)
        alpha[top:bottom, left:right] = 0
        image = ("a.png", file_of(with_alpha(picture, alpha), "png"))
        drawn = await client.images.edit(model=name, image=image, prompt=request["text"], extra_body=seed)
        return drawn.data[0].b64_json

    async def look(client: Any) -> Any:
        url = "data:image/png;base64," + base64.b64encode(request["image"]).decode()
        content = [{"type": "text", "text": request["text"]}, {"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "user", "content": content}]
        answer = await client.chat.completions.create(model=name, messages=messages, **seed)
        return answer.choices[0].message.content

    async def hear(client: Any) -> Any:
        file = ("a.wav", request["audio"])
        return (await client.audio.transcriptions.create(model=name, file=file, extra_body=seed)).text

    async def speak(client: Any) -> Any:
        spoken = await client.audio.speech.create(
            model=name, voice="default", input=request["text"], response_format="wav", extra_body=seed
        )
        return spoken.content

    return {"t2i": draw, "inpainting": edit, "vqa": look, "asr": hear, "tts": speak}[request["task"]]
