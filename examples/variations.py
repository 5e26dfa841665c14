"""Rapid variation: n answers to one request, side by side on one sheet.

    omnidiff serve &
    python examples/variations.py http://127.0.0.1:8000 "big blue square" sheet.png --n=6 --temperature=1

The answers of one request share the steps of a batch.
"""

import argparse
import io
import math
from pathlib import Path

from common import connected, decoded
from PIL import Image

GAP = 8


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in rows, as square as can be."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = (side + GAP for side in pictures[0].size)
    whole = Image.new("RGB", (columns * width + GAP, math.ceil(len(pictures) / columns) * height + GAP), "gray")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        whole.paste(picture, (GAP + column * width, GAP + row * height))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("words")
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same sheet")
    parser.add_argument("--temperature", type=float, default=1.0, help="without one the answers are alike")
    args = parser.parse_args()
    client, model = connected(args.url)
    # A code a step: the earlier ones are seen by those that follow.
    settings = {"sampler.reveal.kind": "schedule"}
    answer = client.images.generate(
        model=model,
        prompt=args.words,
        n=args.n,
        extra_body={"seed": args.seed, "temperature": args.temperature, "settings": settings},
    )
    pictures = [Image.open(io.BytesIO(decoded(data.b64_json or ""))) for data in answer.data or []]
    sheet(pictures).save(args.sheet)
    different = len({picture.tobytes() for picture in pictures})
    print(f"{args.sheet}: {len(pictures)} pictures, {different} different")


if __name__ == "__main__":
    main()
