"""Every endpoint of `omnidiff serve`, asked with the `openai` package.

    omnidiff serve &
    python examples/openai_client.py http://127.0.0.1:8000 answers

The answers are left in the folder; OMNIDIFF_API_KEY is shown where the server has a key.
"""

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI
from PIL import Image


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def picture_of(data: Any) -> bytes:
    return base64.b64decode(data.b64_json)


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OMNIDIFF_API_KEY", "none"))
    (model,) = (entry.id for entry in client.models.list())

    # Words to a picture: the canvas as it fills in, then three variations side by side. What OpenAI's names do not say
    # goes in extra_body.
    for event in client.images.generate(model=model, prompt="small red circle top left", stream=True, partial_images=2):
        name = "circle" if event.type.endswith("completed") else f"circle_{event.partial_image_index}"
        (folder / f"{name}.png").write_bytes(picture_of(event))
    circle = (folder / "circle.png").read_bytes()
    varied = client.images.generate(
        model=model,
        prompt="large blue square",
        n=3,
        extra_body={"seed": 1, "temperature": 0.8, "settings": {"sampler.reveal.kind": "schedule"}, "steps": 8},
    )
    for number, data in enumerate(varied.data or []):
        (folder / f"square_{number}.png").write_bytes(picture_of(data))

    # A hole in a picture of any size: alpha 0 is drawn anew, everything else stays as it is.
    photo = Image.open(io.BytesIO(circle)).convert("RGB").resize((160, 96))
    mask = Image.new("RGBA", photo.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 64))
    files = {}
    for name, image in (("image", photo), ("mask", mask)):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        files[name] = (f"{name}.png", buffer.getvalue())
    edited = client.images.edit(model=model, prompt="small green square top left", **files)
    (folder / "edited.png").write_bytes(picture_of((edited.data or [])[0]))

    # Speech both ways.
    with client.audio.speech.with_streaming_response.create(
        model=model, voice="default", input="small red circle top left", response_format="wav"
    ) as spoken:
        spoken.stream_to_file(folder / "spoken.wav")
    heard = client.audio.transcriptions.create(model=model, file=folder / "spoken.wav", response_format="verbose_json")
    print(f"heard {heard.duration:.1f} s: {heard.text}")

    # A conversation: a picture and a question, the answer streamed; then a spoken question, answered in words and
    # speech, with all that was said before.
    question = [
        {"type": "text", "text": "what colour is the circle"},
        {"type": "image_url", "image_url": {"url": data_url(circle)}},
    ]
    messages: list[Any] = [{"role": "user", "content": question}]
    said = ""
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            said += choice.delta.content or ""
    print(f"it is {said}")
    wav = base64.b64encode((folder / "spoken.wav").read_bytes()).decode()
    spoken_question = [{"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}]
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": spoken_question}],
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "wav"},
    )
    message = answer.choices[0].message
    if message.audio is not None:
        (folder / "answer.wav").write_bytes(base64.b64decode(message.audio.data))
    print(f"it answers: {message.audio.transcript if message.audio else message.content}")

    # Speech to a picture.
    drawn = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": spoken_question}],
        extra_body={"modalities": ["image"]},
    )
    images = drawn.choices[0].message.model_extra or {}
    url_of = images["images"][0]["image_url"]["url"]
    (folder / "heard.png").write_bytes(base64.b64decode(url_of.partition(",")[2]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} URL FOLDER")
    main(sys.argv[1], Path(sys.argv[2]))
