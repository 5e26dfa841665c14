"""MP3 streams without an index: how long they are, counted, since decoders estimate it from the first frames.

A file of variable bit rate without a Xing, Info or VBRI header is cut silently, or said to be cut short, by whoever
trusts the estimate. `indexed` puts the header in front that its encoder left out (ISO 11172-3, 2.4.1; the Xing header
is a custom of encoders).
"""

import io
import struct
from typing import BinaryIO

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version: 1, 2, 2.5
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MONO = 3
SAMPLES_PER_FRAME = 1152
_SEARCHED = 4096
_LONGEST_FRAME = 1441
_BLOCK = 1 << 16


class _Spliced(io.RawIOBase):
    """A stream with some bytes put in."""

    def __init__(self, raw: BinaryIO, start: int, header: bytes):
        """Args: the stream; where `header` stands in it."""
        self._raw, self._start, self._header = raw, start, header
        self._size = raw.seek(0, io.SEEK_END) + len(header)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._size)[whence], 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        behind = self._at - self._start - len(self._header)
        if 0 <= self._at - self._start < len(self._header):
            found = self._header[self._at - self._start :][: len(buffer)]
        else:
            self._raw.seek(self._at if self._at < self._start else self._start + behind)
            found = self._raw.read(len(buffer) if behind >= 0 else min(len(buffer), self._start - self._at))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def indexed(raw: BinaryIO) -> BinaryIO:
    """The stream with a Xing header that counts its frames; as it is where it has one, or is no layer 3 stream.

    Its frames are walked over, none is kept in memory.
    """
    start = _first_frame(raw)
    if start is None:
        return raw
    length, side = _frame(_read(raw, start, 4)) or (0, 0)
    head = _read(raw, start, length)
    if head[4 + side : 8 + side] in (b"Xing", b"Info") or head[36:40] == b"VBRI":
        return raw
    frames, at, size = 0, start, raw.seek(0, io.SEEK_END)
    while at + 4 <= size:
        found = _frame(_read(raw, at, 4))
        if found is None:
            at = _next(raw, at + 1)
            continue
        frames += at + found[0] <= size
        at += found[0]
    # The rate that gives the header room; 64 kbit/s have it at every sampling rate.
    first = bytearray(head[:4])
    for index in range(1, 15):
        first[2] = first[2] & 0x0F | index << 4
        size = (_frame(bytes(first)) or (0, 0))[0]
        if size >= 4 + side + 12:
            break
    first[1] |= 1  # no checksum follows
    header = bytes(first) + bytes(side) + b"Xing" + struct.pack(">II", 1, frames)
    return io.BufferedReader(_Spliced(raw, start, header.ljust(size, b"\0")))


def _read(raw: BinaryIO, at: int, size: int) -> bytes:
    raw.seek(at)
    return raw.read(size)


def _next(raw: BinaryIO, at: int) -> int:
    """Where a frame may begin, from `at` on; behind the end where none does."""
    raw.seek(at)
    while block := raw.read(_BLOCK):
        found = block.find(b"\xff")
        if found >= 0:
            return at + found
        at += len(block)
    return at


def _first_frame(raw: BinaryIO) -> int | None:
    """Where the first frame begins, behind an ID3v2 tag; None where two frames do not follow each other."""
    tag = _read(raw, 0, 11)
    at = 0
    if tag[:3] == b"ID3" and len(tag) > 10:
        size = 0
        for byte in tag[6:10]:
            size = size << 7 | byte & 0x7F
        at = 10 + size
    block = _read(raw, at, _SEARCHED + _LONGEST_FRAME + 4)
    for start in range(min(_SEARCHED, len(block))):
        found = _frame(block[start : start + 4])
        if found is not None:
            behind = start + found[0]
            if behind >= len(block) or _frame(block[behind : behind + 4]):
                return at + start
    return None


def _frame(head: bytes) -> tuple[int, int] | None:
    """Bytes of the layer 3 frame that begins with these four, and of its side information."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, kbits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version not in _RATES or rate == 3 or kbits in (0, 15):
        return None
    mono = head[3] >> 6 == _MONO
    table, per_frame = (_KBITS_1, 144) if version == 3 else (_KBITS_2, 72)
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return per_frame * 1000 * table[kbits] // _RATES[version][rate] + (head[2] >> 1 & 1), side
