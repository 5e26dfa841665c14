"""A support agent: a picture of what it is about, questions asked aloud, answers in words and aloud, all remembered.

    omnidiff serve &
    python examples/support_agent.py http://127.0.0.1:8000 photo.png answers first.wav second.wav

Questions are files, or words that the model says first.
"""

import argparse
from pathlib import Path
from typing import Any

from common import connected, decoded, heard, recording, seen
from openai import BadRequestError, OpenAI


class Agent:
    """Talks about one picture.

    Args:
        client: of the server.
        model: its model.
        picture: a file's bytes.
    """

    def __init__(self, client: OpenAI, model: str, picture: bytes):
        self._client, self._model, self._picture = client, model, picture
        self.turns: list[Any] = []

    def ask(self, wav: bytes) -> tuple[str, str, bytes]:
        """What was heard, what is answered, and that as a wav file, empty where nothing is said aloud."""
        first = not self.turns
        shown = [seen(self._picture)] if first else []
        answer = self._client.chat.completions.create(
            model=self._model,
            messages=[*self.turns, {"role": "user", "content": [heard(wav), *shown]}],
            modalities=["text", "audio"],
            audio={"voice": "default", "format": "wav"},
        )
        message = answer.choices[0].message
        said = message.audio.transcript if message.audio else message.content or ""
        # Remembered in words, which take a few positions of the canvas where speech takes many.
        words = self._client.audio.transcriptions.create(model=self._model, file=("question.wav", wav)).text
        self.turns.append({"role": "user", "content": [{"type": "text", "text": words}, *shown]})
        self.turns.append({"role": "assistant", "content": said})
        return words, said, decoded(message.audio.data) if message.audio else b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("folder", type=Path, help="where the spoken answers go")
    parser.add_argument("questions", nargs="+", help="files of speech, or words")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    client, model = connected(args.url)
    agent = Agent(client, model, args.picture.read_bytes())
    for number, what in enumerate(args.questions, start=1):
        try:
            words, said, wav = agent.ask(recording(client, model, what))
        except BadRequestError as error:
            raise SystemExit(f"question {number}: {error.message}") from error  # the canvas is full, for one
        if wav:
            (args.folder / f"{number}.wav").write_bytes(wav)
        print(f"you: {words}\nagent: {said}")


if __name__ == "__main__":
    main()
