"""Repair of a picture by description: a box of it is drawn anew, every other pixel stays as it is.

    omnidiff serve &
    python examples/repair.py http://127.0.0.1:8000 photo.png 0,0,96,96 "green triangle top left, on white" new.png

The box is left,top,right,bottom in the picture's own pixels; the words say what the whole picture shows.
"""

import argparse
import io
from pathlib import Path

from common import connected, decoded
from PIL import Image, ImageChops, ImageOps


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("box", help="left,top,right,bottom")
    parser.add_argument("words")
    parser.add_argument("repaired", type=Path)
    args = parser.parse_args()
    left, top, right, bottom = (int(part) for part in args.box.split(","))
    before = ImageOps.exif_transpose(Image.open(args.picture)).convert("RGB")
    mask = Image.new("RGBA", before.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (left, top, right, bottom))  # alpha 0 is drawn anew
    client, model = connected(args.url)
    answer = client.images.edit(
        model=model, prompt=args.words, image=("picture.png", png(before)), mask=("mask.png", png(mask))
    )
    content = decoded((answer.data or [])[0].b64_json or "")
    args.repaired.write_bytes(content)
    changed = ImageChops.difference(before, Image.open(io.BytesIO(content)).convert("RGB")).getbbox()
    print(f"{args.repaired}: changed within {changed}")


if __name__ == "__main__":
    main()
