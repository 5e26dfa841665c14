"""Prototyping aloud: whatever is said becomes a picture, and is seen filling in.

    omnidiff serve &
    python examples/speech_to_image.py http://127.0.0.1:8000 drawn sketch.wav "small red circle top left, on white"

A recording is a file; words are said by the model first. Of each the folder gets the picture and the canvas after every
step.
"""

import argparse
from pathlib import Path
from typing import Any

from common import connected, decoded, heard, recording
from openai import OpenAI


def draw(client: OpenAI, model: str, wav: bytes, folder: Path) -> int:
    """Draws what a recording says; returns how many steps were seen."""
    folder.mkdir(parents=True, exist_ok=True)
    messages: list[Any] = [{"role": "user", "content": [heard(wav)]}]
    stream: Any = client.chat.completions.create(
        model=model,
        messages=messages,
        stream=True,
        # Not of OpenAI's: pictures as answers, and the canvas on its way.
        stream_options={"include_canvas": True},
        extra_body={"modalities": ["image"]},
    )
    steps = 0
    for chunk in stream:
        if canvas := (chunk.model_extra or {}).get("canvas"):
            steps += 1
            (folder / f"step_{canvas['step']:03}.png").write_bytes(decoded(canvas["b64_json"]))
        for choice in chunk.choices:
            for image in (choice.delta.model_extra or {}).get("images", ()):
                (folder / "picture.png").write_bytes(decoded(image["image_url"]["url"]))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("said", nargs="+", help="files of speech, or words")
    args = parser.parse_args()
    client, model = connected(args.url)
    for number, what in enumerate(args.said, start=1):
        folder = args.folder / str(number)
        steps = draw(client, model, recording(client, model, what), folder)
        print(f"{what}: {steps} steps, {folder / 'picture.png'}")


if __name__ == "__main__":
    main()
