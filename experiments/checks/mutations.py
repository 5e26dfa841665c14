"""Damage that keeps the structure: JSON trees, cells of tables, members of archives, fields of wav, png and jpeg."""

import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.records import Waveform

# What stands where something else was: of other types, at the ends of ranges, out of the folder, no Unicode.
_ODD: tuple[Any, ...] = (
    None,
    True,
    "",
    " ",
    0,
    -1,
    2**63,
    10**40,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [None],
    [[]],
    {"a": {}},
)
_ODD_TEXTS = (
    "\0",
    "\ud83d",
    "<|image|>",
    "<|audio|>",
    "../a.wav",
    "/etc/passwd",
    "a" * 5000,
    "\N{BYTE ORDER MARK}",
    "..",
)
_NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def seed_media(rng: random.Random) -> dict[str, bytes]:
    """Small whole media by their endings."""
    waves = np.sin(np.arange(4000) * rng.uniform(0.05, 0.4)).astype(np.float32) * 0.3
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (12, 10, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG")
    return {"wav": wav_bytes(Waveform(waves, 16000)), "png": png_bytes(pixels), "jpg": jpeg.getvalue()}


def tree(rng: random.Random, content: Any) -> Any:
    """A JSON value with one node of it replaced, dropped, repeated or moved."""
    nodes = list(_nodes(content, None, None))
    _, parent, key = rng.choice(nodes)
    odd = rng.choice((*_ODD, *_ODD_TEXTS))
    if parent is None:
        return odd
    action = rng.randrange(4)
    if action == 0 or (action > 1 and isinstance(parent, dict)):
        parent[key] = odd
    elif action == 1:
        del parent[key]
    elif action == 2:
        parent.insert(key, parent[key])
    else:
        parent.append(odd)
    return content


def _nodes(value: Any, parent: Any, key: Any) -> Any:
    yield value, parent, key
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, held in list(inner):
        yield from _nodes(held, value, name)


def flipped(rng: random.Random, content: bytes) -> bytes:
    """Bytes with some of them changed, taken out, put in, or with the end cut off."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not damaged:
            break
        at, action = rng.randrange(len(damaged)), rng.randrange(4)
        if action == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del damaged[at : at + rng.choice((1, 4, 64))]
        elif action == 2:
            damaged[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        else:
            del damaged[at:]
    return bytes(damaged)


def wav(rng: random.Random, content: bytes) -> bytes:
    """A wav with a field of its header at the end of its range, or of another length than it says."""
    damaged = bytearray(content)
    at, form = rng.choice(
        ((4, "<I"), (16, "<I"), (20, "<H"), (22, "<H"), (24, "<I"), (28, "<I"), (32, "<H"), (34, "<H"), (40, "<I"))
    )
    struct.pack_into(form, damaged, at, rng.choice(_NUMBERS) & (0xFFFF if form == "<H" else 0xFFFFFFFF))
    return bytes(damaged)


def png(rng: random.Random, content: bytes) -> bytes:
    """A png with a chunk damaged, dropped, doubled or moved; checksums fit again, so that decoders go on."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number, action = rng.randrange(len(chunks)), rng.randrange(5)
    kind, body = chunks[number]
    if action == 0 and kind == b"IHDR":
        field = rng.randrange(2)
        body = body[: 4 * field] + struct.pack(">I", rng.choice(_NUMBERS)) + body[4 * field + 4 :]
        chunks[number] = kind, body
    elif action == 1:
        chunks[number] = kind, flipped(rng, body)
    elif action == 2:
        del chunks[number]
    elif action == 3:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[number])
    else:
        chunks.insert(number, (rng.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL")), rng.randbytes(24)))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return content[:8] + b"".join(parts)


def jpeg(rng: random.Random, content: bytes) -> bytes:
    """A jpeg with a segment damaged, dropped or doubled, or its length wrong."""
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        (size,) = struct.unpack(">H", content[at + 2 : at + 4])
        segments.append(content[at : at + 2 + size])
        at += 2 + size
    number, action = rng.randrange(len(segments)), rng.randrange(4)
    if action == 0:
        segments[number] = segments[number][:4] + flipped(rng, segments[number][4:])
    elif action == 1:
        del segments[number]
    elif action == 2:
        segments.insert(number, segments[number])
    else:
        segments[number] = (
            segments[number][:2] + struct.pack(">H", rng.choice(_NUMBERS) & 0xFFFF) + segments[number][4:]
        )
    return content[:2] + b"".join(segments) + content[at:]


FIELDS: Mapping[str, Callable[[random.Random, bytes], bytes]] = {"wav": wav, "png": png, "jpg": jpeg}


def medium(rng: random.Random, ending: str, content: bytes) -> bytes:
    """A medium with its fields or its bytes damaged, or as it is, which one in four is."""
    action = rng.randrange(4)
    return content if action == 0 else flipped(rng, content) if action == 1 else FIELDS[ending](rng, content)


def line(rng: random.Random, row: Any) -> bytes:
    """A line of JSON of a damaged tree, or damaged as text; never two lines, never none."""
    told = json.dumps(tree(rng, row) if rng.random() < 0.7 else row).encode()
    if rng.random() < 0.2:
        told = flipped(rng, told).replace(b"\n", b"?").replace(b"\r", b"?").strip() or b"?"
    return told + b"\n"


def members(rng: random.Random, given: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Members of an archive in another order, doubled, dropped, or of other names."""
    found = list(given)
    for _ in range(rng.randrange(3)):
        number, action = rng.randrange(len(found)), rng.randrange(4)
        name, content = found[number]
        if action == 0:
            found.insert(rng.randrange(len(found)), found.pop(number))
        elif action == 1:
            found.append(found[number])
        elif action == 2 and len(found) > 1:
            del found[number]
        else:
            odd = ("../" + name, "/" + name, "a/" * 60 + name, "." + name, name + ".", "é" + name, name.upper())
            found[number] = rng.choice(odd), content
    return found


def tar_bytes(given: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """An archive of members, and where the header of each begins."""
    buffer, starts = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in given:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            starts.append(archive.offset)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), starts


def tar(rng: random.Random, given: Sequence[tuple[str, bytes]], damaged: bool) -> bytes:
    """An archive; `damaged` = a field of a header, with its checksum right again, or any bytes."""
    content, starts = tar_bytes(given)
    whole = bytearray(content)
    if not damaged:
        return bytes(whole)
    if rng.random() < 0.5:
        return flipped(rng, bytes(whole))
    at = rng.choice(starts)
    field, size = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    whole[at + field : at + field + size] = rng.randbytes(size) if rng.random() < 0.5 else b"7" * size
    whole[at + 148 : at + 156] = b" " * 8
    whole[at + 148 : at + 156] = b"%06o\0 " % sum(whole[at : at + tarfile.BLOCKSIZE])
    return bytes(whole)
