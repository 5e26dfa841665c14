"""Frozen dataclasses from `ml_collections.ConfigDict`s, rejecting unknown keys, wrong types and numbers out of range.

A field says its range in its type: `b2: DecayRate = 0.95`, `chunk: Count = 1024`, or `Annotated[float, Range(1, 2)]`
where no name below fits. Without one a float must be finite in float32, and an int fit 64 bits.
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from omnidiff_jax.errors import UserError

T = TypeVar("T")

_LARGEST, _SMALLEST = (2 - 2**-23) * 2.0**127, 2.0**-126  # normal numbers of float32


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field takes; None = no such bound.

    Attributes:
        at_least, at_most: bounds that belong to the range.
        above, below: bounds that do not.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def missed(self, value: float) -> str:
        """The bound that `value` misses, in words; "" where it is within."""
        checks = (
            ("at least", self.at_least, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.at_most, operator.le),
            ("below", self.below, operator.lt),
        )
        return next((f"{word} {b}" for word, b, holds in checks if b is not None and not holds(value, b)), "")


_INDEX = 2**31 - 1  # what is counted is counted in int32 on devices
Count = Annotated[int, Range(at_least=1, at_most=_INDEX)]
Natural = Annotated[int, Range(at_least=0, at_most=_INDEX)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
DecayRate = Annotated[float, Range(at_least=0, below=1)]


def nearest(name: str, choices: Iterable[str]) -> str:
    """The member of `choices` most like `name`, for "did you mean" messages; "" if nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.3)
    return found[0] if found else ""


def suggest(name: str, choices: Iterable[str]) -> str:
    """A clause naming the nearest known name, or all of them when none is close."""
    known = sorted(choices)
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or a `UserError` that names the nearest key.

    Raises:
        UserError: `name` is not a key of `table`.
    """
    if name not in table:
        raise UserError(f"unknown {what} {name!r}; {suggest(name, table)}")
    return table[name]


def refuse_unknown(mapping: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises a `UserError` for the first key of `mapping` that is not known, naming the nearest one that is."""
    known = set(known)
    for key in mapping:
        if key not in known:
            raise UserError(f"unknown key {where}.{key}; {suggest(key, known)}")


def build(cls: type[T], mapping: Any, where: str = "config") -> T:
    """Builds the frozen dataclass `cls` (nested dataclasses included) from a mapping.

    Args:
        cls: a dataclass type. Lists become tuples; ints are accepted for floats.
        mapping: a dict or `ConfigDict`; keys left out keep the dataclass's defaults.
        where: dotted path of `mapping`, for messages.

    Raises:
        UserError: an unknown key (naming the nearest known one), a missing required key, a value of another type, or a
            number that is not finite or out of its field's range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {}
    refuse_unknown(mapping, fields, where)
    for key in mapping:
        values[key] = _convert(hints[key], mapping[key], f"{where}.{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            hint = typing.get_type_hints(cls)[name]
            raise UserError(f"missing key {where}.{name} ({getattr(hint, '__name__', hint)})")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def check_fields(config: Any, where: str) -> None:
    """Refuses what `build` would refuse, for the `__post_init__` of a dataclass that is also made without it.

    Raises:
        UserError: a field of another type, or a number that is not finite or out of its field's range.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        _convert(hints[field.name], getattr(config, field.name), f"{where}.{field.name}")


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `build`: nested plain dicts and lists, JSON-serialisable."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        inner, *notes = typing.get_args(hint)
        value = _convert(inner, value, where)
        for note in notes:
            if isinstance(note, Range) and (bound := note.missed(value)):
                raise UserError(f"{where} = {value!r} must be {bound}")
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        errors = []
        for option in options:
            if option is type(None):
                continue
            try:
                return _convert(option, value, where)
            except UserError as error:
                errors.append(error)
        raise errors[-1]
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where} = {value!r}; {suggest(str(value), map(str, typing.get_args(hint)))}")
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not _is_mapping(value):
            raise UserError(f"{where} = {value!r} must be a group of keys ({hint.__name__})")  # type: ignore[union-attr]
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        args = typing.get_args(hint)
        if isinstance(value, (str, bytes)) or not isinstance(value, (tuple, list)):
            raise UserError(f"{where} = {value!r} must be a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise UserError(f"{where} = {value!r} must have {len(args)} entries, has {len(value)}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict or origin is Mapping:
        if not _is_mapping(value):
            raise UserError(f"{where} = {value!r} must be a group of keys")
        inner = typing.get_args(hint)[1] if typing.get_args(hint) else Any
        return {k: _convert(inner, value[k], f"{where}.{k}") for k in value}
    if isinstance(hint, type):
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1023 else math.inf
        if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
            raise UserError(f"{where} = {value!r} must be {hint.__name__}, not {type(value).__name__}")
    if hint is float or hint is int:
        _check_number(value, where)
    return value


def _check_number(value: float, where: str) -> None:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UserError(f"{where} = {value!r} must fit 64 bits")
    elif not abs(value) <= _LARGEST:
        raise UserError(f"{where} = {value!r} must be a finite number of float32")
    elif 0 < abs(value) < _SMALLEST:
        raise UserError(f"{where} = {value!r} is nothing in float32, whose numbers begin at {_SMALLEST:.2g}; use 0")


def _is_mapping(value: Any) -> bool:
    return hasattr(value, "keys") and hasattr(value, "__getitem__")
