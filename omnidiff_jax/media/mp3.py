"""MP3 streams without an index: how long they are, counted, since decoders estimate it from the first frames.

A file of variable bit rate without a Xing, Info or VBRI header is cut silently, or said to be cut short, by whoever
trusts the estimate. `indexed` puts the header in front that its encoder left out (ISO 11172-3, 2.4.1; the Xing header
is a custom of encoders).
"""

import struct

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version: 1, 2, 2.5
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MONO = 3
SAMPLES_PER_FRAME = 1152


def indexed(content: bytes) -> bytes:
    """The stream with a Xing header that counts its frames; as it is where it has one, or is no layer 3 stream."""
    start = _first_frame(content)
    if start is None:
        return content
    length, side = _frame(content, start) or (0, 0)
    head = content[start : start + length]
    if head[4 + side : 8 + side] in (b"Xing", b"Info") or head[36:40] == b"VBRI":
        return content
    frames, at = 0, start
    while at + 4 <= len(content):
        found = _frame(content, at)
        if found is None:
            at = content.find(b"\xff", at + 1)
            if at < 0:
                break
            continue
        frames += at + found[0] <= len(content)
        at += found[0]
    # The rate that gives the header room; 64 kbit/s have it at every sampling rate.
    first = bytearray(content[start : start + 4])
    for index in range(1, 15):
        first[2] = first[2] & 0x0F | index << 4
        size = (_frame(bytes(first), 0) or (0, 0))[0]
        if size >= 4 + side + 12:
            break
    first[1] |= 1  # no checksum follows
    header = bytes(first) + bytes(side) + b"Xing" + struct.pack(">II", 1, frames)
    return content[:start] + header.ljust(size, b"\0") + content[start:]


def _first_frame(content: bytes) -> int | None:
    """Where the first frame begins, behind an ID3v2 tag; None where two frames do not follow each other."""
    at = 0
    if content[:3] == b"ID3" and len(content) > 10:
        size = 0
        for byte in content[6:10]:
            size = size << 7 | byte & 0x7F
        at = 10 + size
    for start in range(at, min(at + 4096, len(content))):
        found = _frame(content, start)
        if found is not None and (_frame(content, start + found[0]) or start + found[0] >= len(content)):
            return start
    return None


def _frame(content: bytes, at: int) -> tuple[int, int] | None:
    """Bytes of the layer 3 frame whose header stands at `at`, and of its side information."""
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, kbits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version not in _RATES or rate == 3 or kbits in (0, 15):
        return None
    mono = head[3] >> 6 == _MONO
    table, per_frame = (_KBITS_1, 144) if version == 3 else (_KBITS_2, 72)
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return per_frame * 1000 * table[kbits] // _RATES[version][rate] + (head[2] >> 1 & 1), side
