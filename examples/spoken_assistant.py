"""A spoken assistant that sees: a picture and a question asked aloud, the answer in words and aloud.

    omnidiff serve &
    python examples/spoken_assistant.py http://127.0.0.1:8000 photo.png question.wav answer.wav

The question is a file, or words that the model says first.
"""

import argparse
from pathlib import Path
from typing import Any

from common import connected, decoded, heard, recording, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("question", help="a file of speech, or words")
    parser.add_argument("answer", type=Path, help="where the spoken answer goes")
    args = parser.parse_args()
    client, model = connected(args.url)
    question = recording(client, model, args.question)
    messages: list[Any] = [{"role": "user", "content": [heard(question), seen(args.picture.read_bytes())]}]
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "wav"},
    )
    message = answer.choices[0].message
    if message.audio is None:
        print(f"nothing was said aloud: {message.content}")
        return
    args.answer.write_bytes(decoded(message.audio.data))
    print(message.audio.transcript)


if __name__ == "__main__":
    main()
