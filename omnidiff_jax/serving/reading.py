"""Requests as they come in: JSON or forms to checked bodies, media to bytes; whatever is wrong is named."""

import base64
import binascii
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from omnidiff_jax.config import suggest
from omnidiff_jax.serving.bodies import Body
from omnidiff_jax.serving.failures import Failure, unsupported
from omnidiff_jax.serving.limits import Limits

T = TypeVar("T", bound=Body)
# Whole numbers below this are floats' own.
_EXACT = 2**53
# Of parts and turns.
_KINDS = ("text", "image_url", "input_audio", "system", "user", "developer", "assistant")
_NESTED = "extra_body"
_FIELDS = 64
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=\"-]+)*;base64,", re.ASCII)


async def json_body(request: Request, form: type[T]) -> T:
    """The body of a JSON request.

    Raises:
        Failure: another type of content, no JSON, or not such a body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Failure(f"content-type is {kind or 'missing'}; send application/json", status=415)
    content = await request.body()
    try:
        values = json.loads(content, parse_constant=_no_constant, parse_float=_number)
    except RecursionError as error:
        raise Failure("the body is nested too deeply") from error
    except ValueError as error:  # bytes that are no text among them, and numbers of thousands of digits
        raise Failure(f"the body is not JSON: {_short(error)}") from error
    if not isinstance(values, dict):
        raise Failure("the body must be a JSON object")
    return checked(form, values, strict=True)


async def form_body(request: Request, form: type[T], files: Mapping[str, bool]) -> tuple[T, dict[str, bytes]]:
    """The fields and files of a multipart request.

    Args:
        form: of the fields.
        files: names of files, and whether each must be there.

    Raises:
        Failure: another type of content, a broken body, one file twice, or not such fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Failure(f"content-type is {kind or 'missing'}; send multipart/form-data", status=415)
    values: dict[str, Any] = {}
    found: dict[str, bytes] = {}
    try:
        async with request.form(max_files=len(files) + 2, max_fields=_FIELDS) as fields:
            for name, value in fields.multi_items():
                if isinstance(value, UploadFile):
                    name = name.removesuffix("[]")
                    if name not in files:
                        raise unsupported(name, f"no such file is taken here; {suggest(name, files)}")
                    if name in found:
                        raise unsupported(name, "one file is taken, not several")
                    found[name] = await value.read()
                else:
                    _put(values, name, value)
    except HTTPException as error:
        raise Failure(f"the form cannot be read: {_short(error.detail)}") from error
    except (ValueError, LookupError) as error:  # of the parser: boundaries, headers, character sets
        raise Failure(f"the form cannot be read: {_short(error)}") from error
    for name, needed in files.items():
        if needed and name not in found:
            raise Failure(f"{name} is missing: send it as a file", param=name, code="missing_required_parameter")
    return checked(form, values, strict=False), found


def checked(form: type[T], values: dict[str, Any], *, strict: bool) -> T:
    """Values as a body; those of `extra_body`, as curl users nest them, are fields like the others.

    Raises:
        Failure: the first field that is unknown, missing or cannot be, by its name.
    """
    nested = values.pop(_NESTED, None)
    if nested is not None:
        if not isinstance(nested, dict):
            raise Failure(f"{_NESTED} must be an object of fields", param=_NESTED)
        for name, value in nested.items():
            if name in values:
                raise Failure(f"{name} stands in the body and in {_NESTED}; leave one out", param=name)
            values[name] = value
    try:
        return form.model_validate(values, strict=strict)
    except ValidationError as error:
        # Of a value that may be one of several things, what is said of the likeliest is said of the deepest place.
        first = max(error.errors(include_url=False, include_context=False), key=lambda found: len(found["loc"]))
    place = _meant(first["loc"])
    name = _path(place)
    if first["type"] == "extra_forbidden":
        known = form.model_fields if len(place) == 1 else ()
        raise unsupported(name, f"is not supported{'; ' + suggest(name, known) if known else ''}")
    if first["type"] == "missing":
        raise Failure(f"{name} is missing", param=name, code="missing_required_parameter")
    raise Failure(f"{name}: {first['msg'][:300]}", param=name, code="invalid_value")


def _meant(place: Sequence[int | str]) -> list[int | str]:
    """A place without the words that pydantic puts in for the kinds of a value."""
    kept: list[int | str] = []
    for before, part in itertools.pairwise((None, *place)):
        kind = isinstance(part, str) and (
            part == "str" or part.startswith("list[") or (isinstance(before, int) and part in _KINDS)
        )
        if part is not None and not kind:
            kept.append(part)
    return kept


def decoded(text: str, param: str) -> bytes:
    """The bytes of base64.

    Raises:
        Failure: it is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Failure(f"{param} is not base64 ({_short(error)})", param=param, code="invalid_value") from error


def data_of(url: str, param: str) -> bytes | None:
    """The bytes of a `data:` URL; None for another URL.

    Raises:
        Failure: a `data:` URL without base64.
    """
    if not url[:5].lower() == "data:":
        return None
    head = _DATA_URL.match(url, 0, 256)
    if head is None:
        raise Failure(f"{param} must read data:image/png;base64,…", param=param, code="invalid_value")
    return decoded(url[head.end() :], param)


def check_text(text: str, param: str, limits: Limits) -> None:
    """Raises a `Failure` for a text over the limit, or with half a character that nobody can write."""
    if len(text) > limits.characters:
        raise Failure(
            f"{param} has {len(text)} characters, over the limit of {limits.characters}",
            status=413,
            param=param,
            code="string_above_max_length",
        )


def _put(values: dict[str, Any], name: str, value: str) -> None:
    """A field of a form; `settings[name]` is one of a group, and JSON where it is that."""
    match = re.fullmatch(r"(settings|extra_body)\[([\w.]+)\]", name)
    if match:
        values.setdefault(match[1], {})[match[2]] = _loose(value)
    elif name == "settings":
        values[name] = _loose(value)
    elif name in values:
        raise Failure(f"{name} stands twice in the form", param=name)
    else:
        values[name] = value


def _loose(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _number(word: str) -> int | float:
    """To JSON 2.0 is a whole number."""
    number = float(word)
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _path(place: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "body"


def _short(error: Any) -> str:
    return str(error)[:200]
