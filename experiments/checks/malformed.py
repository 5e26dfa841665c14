"""Requests that are nearly right, the same ones for a number: of bodies, forms, media and the lines around them."""

import base64
import dataclasses
import functools
import io
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from experiments.checks.scripted import Sent
from omnidiff_jax.records import Waveform
from omnidiff_jax.serving.pictures import file_of, with_alpha
from omnidiff_jax.serving.sound import FORMATS

MODEL = "nano"
_BOUNDARY = b"----sent"
_PATHS = ("/", "/v1/models", f"/v1/models/{MODEL}", "/health", "/health/live", "/metrics", "/openapi.json", "/app.js")
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get", "X" * 300, "")
# Numbers, texts and shapes that something may not have been made for.
_NUMBERS = (0, -1, 1, 2, 255, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e-320, 1e308)
_TEXTS = (
    *("", " ", "\x00", "\ud800", "\udfff\ud800", "\u202e", "e\u0301", "\U0001f600" * 50, "<|im_end|>", "<|image|>"),
    *("red\r\n\r\nblue", "NaN", "0", "-1", "true", "null", "{}", "../../etc/passwd", "{text}", "%s%n", "a" * 40_000),
    *("file:///etc/passwd", "http://127.0.0.1/", "https://[::1]/"),
    *("data:", "data:image/png;base64,", "data:image/png;base64,AAAA", "data:,a"),
)
_SHAPES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"a": {"a": {}}}}, [0] * 300),
    *({"type": "text"}, {"type": "text", "text": ""}),
)
_ODD = (*_NUMBERS, *_TEXTS, *_SHAPES)
_SETTINGS = (
    *("length", "prefill", "stop", "unconditional", "sampler", "sampler.steps", "sampler.steps_per_token"),
    *("sampler.schedule", "sampler.schedule.kind", "sampler.reveal", "sampler.reveal.kind", "sampler.confidence.kind"),
    *("sampler.filters.top_p", "sampler.filters.temperature", "sampler.repetition.form", "sampler.position"),
    *(
        "sampler.guidance.scale",
        "sampler.guidance.kind",
        "sampler.blocks.size",
        "sampler.candidates",
        "steps",
        "sampler.",
    ),
    *("sampler.candidates.kind", "sampler.cache.kind", "sampler.drafting.kind", "rows_per_chunk", "__class__", ".", ""),
)
_VALUES = ("schedule", "threshold", "dual", "random", "linear", "cosine", "entropy", "never", "released", "any", "all")


@dataclasses.dataclass(frozen=True)
class Whole:
    """A request that is in order.

    Attributes:
        path: where it goes.
        fields: of its body.
        files: of a form; None where the body is JSON.
    """

    path: str
    fields: Mapping[str, Any]
    files: Mapping[str, bytes] | None = None


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """Files of small pictures in every form that is read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
    alpha = np.full((24, 32), 255, np.uint8)
    alpha[:9, :9] = 0
    made = [file_of(pixels, form) for form in ("png", "jpeg", "webp")]
    made += [file_of(with_alpha(pixels, alpha), form) for form in ("png", "webp")]
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, form in (("L", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGB", "JPEG")):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("I" if mode == "I;16" else mode).convert(mode).save(buffer, form, exif=exif)
        made.append(buffer.getvalue())
    return tuple(made)


@functools.cache
def sounds() -> tuple[bytes, ...]:
    """Files of a fifth of a second in every form that is read."""
    wave = Waveform((0.3 * np.sin(np.arange(3200) * 0.1)).astype(np.float32), 16_000)
    return (*(encode(wave) for form, (_, encode) in FORMATS.items() if not form.startswith("pcm")), _webm(wave))


def _webm(wave: Waveform) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48_000)
        samples = np.repeat(wave.samples, 3)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.rate = 48_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


@functools.cache
def whole_requests() -> tuple[Whole, ...]:
    """One of every kind, all of which are answered."""
    picture = {"type": "image_url", "image_url": {"url": _url(pictures()[0])}}
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sounds()[0]).decode(), "format": "wav"}}
    text, drawn = {"type": "text", "text": "what colour is it"}, "small red circle"
    asked = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what colour is snow"}]
    turns = [*asked, {"role": "assistant", "content": "white"}, {"role": "user", "content": [text, picture]}]
    chat, about = "/v1/chat/completions", {"model": MODEL, "seed": 1}
    watched = {"stream": True, "stream_options": {"include_usage": True, "include_canvas": True}}
    edited = {"image": pictures()[0], "mask": pictures()[3]}
    return (
        Whole(chat, {**about, "messages": asked, "max_tokens": 4, "temperature": 0.5}),
        Whole(chat, {**about, "messages": turns, "n": 2}),
        Whole(chat, {**about, "messages": turns, **watched}),
        Whole(chat, {**about, "messages": [{"role": "user", "content": [heard]}], "settings": {"sampler.steps": 4}}),
        Whole(chat, {**about, "messages": asked, "modalities": ["image"], "stream": True}),
        Whole("/v1/images/generations", {**about, "prompt": drawn, "n": 2, "size": "auto", "output_format": "webp"}),
        Whole("/v1/images/generations", {**about, "prompt": drawn, "stream": True, "partial_images": 2}),
        Whole("/v1/images/edits", {**about, "prompt": drawn}, edited),
        Whole("/v1/images/edits", {**about, "prompt": drawn, "stream": "true"}, {"image": pictures()[3]}),
        Whole("/v1/audio/transcriptions", {**about, "response_format": "verbose_json"}, {"file": sounds()[0]}),
        Whole("/v1/audio/transcriptions", {**about, "stream": "true"}, {"file": sounds()[1]}),
        Whole("/v1/audio/speech", {**about, "voice": "default", "input": "it is red", "length": 8}),
    )


def sent(whole: Whole, rng: random.Random | None = None) -> Sent:
    """A request as it goes over the wire."""
    if whole.files is None:
        return _posted(whole.path, json.dumps(whole.fields).encode(), b"application/json", rng)
    kind = b"multipart/form-data; boundary=" + _BOUNDARY
    return _posted(whole.path, _form(_parts(whole)), kind, rng)


def malformed(number: int, key: str, seed: int = 0, in_order: float = 0.0) -> tuple[str, Sent]:
    """What a number stands for: a kind of damage (a key of `KINDS`), and a request that bears it.

    Args:
        in_order: share of requests without any, "whole".
    """
    rng = random.Random(f"{seed}/{number}")
    kind = "whole" if rng.random() < in_order else rng.choice(tuple(KINDS))
    whole = rng.choice(whole_requests())
    made = KINDS[kind](rng, whole) if kind in KINDS else sent(whole, rng)
    shown = b"Bearer " + key.encode()
    if kind == "lines" and rng.random() < 0.2:
        shown = rng.choice((b"", b"Bearer", b"Bearer \xff\xfe", b"Basic " + key.encode(), b"bearer  " + key.encode()))
    return kind, dataclasses.replace(made, headers=((b"authorization", shown), *made.headers))


def _values(rng: random.Random, whole: Whole) -> Sent:
    """Other values, fields and shapes in a body."""
    fields = json.loads(json.dumps(whole.fields))
    for _ in range(rng.choice((1, 1, 2, 4))):
        fields = _altered(rng, fields)
    if rng.random() < 0.25 and isinstance(fields, dict):
        value = rng.choice((*_VALUES, *_ODD))
        name = rng.choice(_SETTINGS)
        fields["settings"] = rng.choice(({name: value}, {name: {"kind": value}}, {"sampler": {"reveal": value}}, value))
    if whole.files is None or not isinstance(fields, dict):
        return _posted(whole.path, json.dumps(fields).encode(), b"application/json", rng)
    parts = [(_disposition(name), _bytes(value)) for name, value in fields.items()]
    body = _form([*parts, *_parts(dataclasses.replace(whole, fields={}))])
    return _posted(whole.path, body, b"multipart/form-data; boundary=" + _BOUNDARY, rng)


def _altered(rng: random.Random, value: Any) -> Any:
    """A value of JSON with one of its places changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        what = rng.random()
        if what < 0.1:
            return {key: other for key, other in value.items() if key != name}
        if what < 0.2:
            return {**value, rng.choice((name + "x", "", "extra_body", "a" * 300, "\ud800")): rng.choice(_ODD)}
        return {**value, name: _altered(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * rng.choice((0, 2, 20))
        return [*value[:place], _altered(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.3:
        return damaged(rng, value.encode("utf-8", "surrogatepass")).decode("latin-1")
    deep: Any = rng.choice(_ODD)
    for _ in range(rng.choice((0, 0, 0, 1, 50))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _raw(rng: random.Random, whole: Whole) -> Sent:
    """Bytes of a body changed, whatever they mean."""
    made = sent(whole, rng)
    body = damaged(rng, b"".join(made.pieces))
    return dataclasses.replace(made, pieces=_pieces(rng, body), cut=rng.random() < 0.1)


def _forms(rng: random.Random, whole: Whole) -> Sent:
    """Parts of a form: their heads, names, order, number and ends."""
    whole = whole if whole.files is not None else rng.choice([w for w in whole_requests() if w.files is not None])
    parts = _parts(whole)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(parts))
        head, content = parts[place]
        what = rng.randrange(6)
        if what == 0:
            parts[place] = (damaged(rng, head), content)
        elif what == 1:
            parts += [parts[place]] * rng.choice((1, 2, 80))
        elif what == 2:
            parts[place] = (
                _disposition(rng.choice(("settings[a]", "settings[]", "image[]", "\udcff", "")), rng),
                content,
            )
        elif what == 3:
            extra = rng.choice(
                (b"Content-Transfer-Encoding: base64", b"Content-Type: multipart/mixed", b"X: " + b"a" * 9000)
            )
            parts[place] = (head + b"\r\n" + extra, content)
        elif what == 4:
            parts[place] = (head, damaged(rng, content))
        else:
            rng.shuffle(parts)
    boundary = rng.choice((_BOUNDARY, _BOUNDARY, _BOUNDARY, b"other", b"", b'"' + _BOUNDARY, b"a" * 300, b"\xff"))
    kind = rng.choice((b"multipart/form-data; boundary=", b"multipart/form-data; charset=utf-7; boundary=")) + boundary
    body = _form(parts)
    return _posted(whole.path, body if rng.random() < 0.8 else body[: -len(_BOUNDARY) - 4], kind, rng)


def _media(rng: random.Random, whole: Whole) -> Sent:
    """A damaged picture or recording in a request that is in order."""
    if whole.path in ("/v1/images/generations", "/v1/audio/speech"):
        whole = whole_requests()[rng.choice((1, 3, 7, 8, 9))]
    content = rng.choice(sounds() if rng.random() < 0.5 else pictures())
    for _ in range(rng.choice((0, 1, 1, 1, 3))):
        content = damaged(rng, content)
    if whole.files is not None:
        name = rng.choice(list(whole.files))
        return sent(dataclasses.replace(whole, files={**whole.files, name: content}), rng)
    encoded = base64.b64encode(content).decode()
    kind = rng.choice(("wav", "mp3", "flac", "ogg", "opus", "webm"))
    part = rng.choice(
        (
            {"type": "input_audio", "input_audio": {"data": encoded, "format": kind}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        )
    )
    return sent(
        dataclasses.replace(whole, fields={**whole.fields, "messages": [{"role": "user", "content": [part]}]}), rng
    )


def _lines(rng: random.Random, whole: Whole) -> Sent:
    """Other methods, paths and headers."""
    made = sent(whole, rng)
    path = rng.choice((made.path, made.path, *_PATHS))
    if rng.random() < 0.3:
        path += rng.choice(
            ("/", "//", "/..", "/../../etc/passwd", "\x00", "\xff", "a" * 5000, "/%2e%2e", "?a=b", "\ud800")
        )
    headers = dict(made.headers)
    for _ in range(rng.choice((0, 1, 2))):
        name = rng.choice((*headers, b"content-type", b"accept", b"expect", b"transfer-encoding", b"cookie", b"range"))
        odd = (b"", b"\xff", b"a" * 9000, b"-1", b"0", b"9" * 30, b"application/json; charset=utf-16", b"text/plain")
        headers[name] = rng.choice(
            (*odd, b"multipart/form-data", b"100-continue", b"chunked", b"bytes=5-1", b"\xd9\xa1")
        )
    method = "POST" if rng.random() < 0.5 else rng.choice(_METHODS)
    return dataclasses.replace(made, method=method, path=path, headers=tuple(headers.items()), cut=rng.random() < 0.1)


# Kind of damage -> a request that bears it.
KINDS: dict[str, Callable[[random.Random, Whole], Sent]] = {
    "values": _values,
    "bytes": _raw,
    "forms": _forms,
    "media": _media,
    "lines": _lines,
}


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with some of them changed, cut off, put in or repeated."""
    out, at = bytearray(content), rng.randrange(len(content) + 1)
    width = rng.choice((1, 1, 2, 4, 8, 64))
    what = rng.randrange(6)
    if what == 0:
        out[at : at + width] = rng.randbytes(len(out[at : at + width]))
    elif what == 1:
        del out[at:]
    elif what == 2:
        out[at:at] = rng.randbytes(width)
    elif what == 3:
        del out[at : at + width]
    elif what == 4:
        out[at:at] = out[at : at + 64] * rng.choice((1, 10, 100))
    else:
        out[at : at + 4] = rng.choice(
            (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
        )
    return bytes(out)


def _posted(path: str, body: bytes, kind: bytes, rng: random.Random | None) -> Sent:
    headers = ((b"content-type", kind), (b"content-length", str(len(body)).encode()))
    return Sent("POST", path, headers, _pieces(rng, body) if rng is not None else (body,))


def _pieces(rng: random.Random, body: bytes) -> tuple[bytes, ...]:
    """A body as it may come in: whole, or in some pieces."""
    if rng.random() < 0.7:
        return (body,)
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.choice((1, 3))))
    return tuple(body[first:last] for first, last in zip((0, *cuts), (*cuts, len(body)), strict=True))


def _parts(whole: Whole) -> list[tuple[bytes, bytes]]:
    """The head and content of each part of a form."""
    fields = [(_disposition(name), _bytes(value)) for name, value in whole.fields.items()]
    return fields + [(_disposition(name, file=True), content) for name, content in (whole.files or {}).items()]


def _disposition(name: str, rng: random.Random | None = None, *, file: bool = False) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"'
    if file or (rng is not None and rng.random() < 0.5):
        head += '; filename="a"\r\nContent-Type: application/octet-stream'
    return head.encode("utf-8", "surrogatepass")


def _form(parts: list[tuple[bytes, bytes]]) -> bytes:
    pieces = [b"--" + _BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return b"".join(pieces) + b"--" + _BOUNDARY + b"--\r\n"


def _bytes(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


def _url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
