"""What the examples share: a server to ask, and media in the forms that it takes."""

import base64
import os
from pathlib import Path
from typing import Any

from openai import OpenAI


def connected(url: str) -> tuple[OpenAI, str]:
    """A client of the server at a URL, and the name of its model."""
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OMNIDIFF_API_KEY", "none"))
    return client, client.models.list().data[0].id


def recording(client: OpenAI, model: str, what: str) -> bytes:
    """The bytes of a file of speech; what is no file is said by the model."""
    if Path(what).is_file():
        return Path(what).read_bytes()
    return client.audio.speech.create(model=model, voice="default", input=what, response_format="wav").content


def heard(wav: bytes) -> dict[str, Any]:
    """A recording as a part of a turn."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}


def seen(png: bytes) -> dict[str, Any]:
    """A picture as a part of a turn."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def decoded(data: str) -> bytes:
    """The bytes of base64, in a data URL or not."""
    return base64.b64decode(data.rpartition(",")[2])
