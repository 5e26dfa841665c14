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
from typing import Annotated, Any, ClassVar, TypeVar

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
    found = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.3)
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


class Choice:
    """Base of a group of settings of which a word picks the class: a strategy, that is, settings with methods.

    The root of a group is its interface and its default; a subclass is another kind, and one handed in as an object
    needs no word. `build(Blur, {"kind": "median", "size": 5})` makes a `Median` of

        @dataclasses.dataclass(frozen=True)
        class Blur(Choice, key="kind", word="mean"):
            size: int = 3

        @dataclasses.dataclass(frozen=True)
        class Median(Blur, word="median"): ...

    `to_dict` gives the word back under the key; "" as the root's word leaves it out. A group without settings whose
    key is "" is the bare word in configs. The word is an attribute of the class, named by the key.
    """

    _key: ClassVar[str]
    _word: ClassVar[str]
    _kinds: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, *, key: str | None = None, word: str | None = None, **others: Any):
        super().__init_subclass__(**others)
        if key is not None:
            cls._key, cls._kinds = key, {}
        cls._word = cls.__name__ if word is None else word
        if word is not None and cls._kinds.setdefault(word, cls) is not cls:
            raise TypeError(f"{cls._kinds[word].__name__} is called {word!r} already")
        if cls._key:
            setattr(cls, cls._key, cls._word)

    @classmethod
    def kinds(cls) -> tuple[Any, ...]:
        """Every class of the group that a word picks."""
        return tuple(cls._kinds.values())

    @classmethod
    def named(cls, word: Any, where: str = "") -> Any:
        """The class called `word`.

        Raises:
            UserError: no such kind; the nearest is named.
        """
        if not isinstance(word, str) or word not in cls._kinds:
            raise UserError(f"{where or cls.__name__} = {word!r}; {suggest(str(word), cls._kinds)}")
        return cls._kinds[word]


def build(cls: type[T], mapping: Any, where: str = "config") -> T:
    """Builds the frozen dataclass `cls` (nested dataclasses included) from a mapping.

    Args:
        cls: a dataclass type, or the root of a `Choice`. Lists become tuples; ints are accepted for floats.
        mapping: a dict or `ConfigDict`; keys left out keep the dataclass's defaults.
        where: dotted path of `mapping`, for messages.

    Raises:
        UserError: an unknown key (naming the nearest known one), a missing required key, a value of another type, or a
            number that is not finite or out of its field's range.
    """
    key = cls._key if issubclass(cls, Choice) else ""
    if issubclass(cls, Choice) and key in mapping:
        cls = cls.named(mapping[key], f"{where}.{key}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {}
    refuse_unknown(mapping, [*fields, *([key] if key else [])], where)
    for name in mapping:
        if name != key:
            values[name] = _convert(hints[name], mapping[name], f"{where}.{name}")
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


def overlaid(base: Any, given: Any) -> Any:
    """`base` with what `given` names replaced, group by group; a value that is no group is replaced whole."""
    if not hasattr(base, "keys") or not hasattr(given, "keys"):
        return given
    return {**base, **{key: overlaid(base.get(key), given[key]) for key in given}}


def free(default: Any = dataclasses.MISSING, **options: Any) -> Any:
    """A dataclass field that a run may change between its starts: how something is computed or kept, not what.

    Args:
        default: of the field; `options` are those of `dataclasses.field`, such as `default_factory`.
    """
    return dataclasses.field(default=default, metadata={"resume": "free"}, **options)


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


def difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two configs of one type differ in what a resumed run must keep.

    Args:
        old, new: frozen dataclasses; fields made by `free` are passed over, in nested ones too.
        path: of the configs, in front of the answer's.

    Returns:
        (dotted path, old value, new value), or None where nothing differs; `NOTHING` stands for an entry of a mapping
        that is not there.
    """
    if dataclasses.is_dataclass(new) and type(old) is type(new):
        names = [f.name for f in dataclasses.fields(new) if f.init and f.metadata.get("resume") != "free"]
        pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(old.keys() | new.keys(), key=str)
        pairs = [(name, old.get(name, NOTHING), new.get(name, NOTHING)) for name in names]
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            if found := difference(one, other, f"{path}[{number}]"):
                return found
        return None
    else:
        return None if old == new else (path, old, new)
    for name, one, other in pairs:
        if found := difference(one, other, f"{path}.{name}" if path else name):
            return found
    return None


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `build`: nested plain dicts and lists, JSON-serialisable."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    plain = {name: _plain(value) for name, value in values.items()}
    kind = {config._key: config._word} if isinstance(config, Choice) and config._key and config._word else {}
    # A strategy that has nothing to say is not mentioned.
    return kind | {name: value for name, value in plain.items() if value != {} or not isinstance(values[name], Choice)}


def _plain(value: Any) -> Any:
    if isinstance(value, Choice) and not value._key:
        return value._word
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
        if isinstance(hint, type) and issubclass(hint, Choice) and not hint._key:
            return hint.named(value, where)()
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
            raise UserError(f"{where} = {value!r} must be a whole number of 64 bits")
    elif not abs(value) <= _LARGEST:
        raise UserError(f"{where} = {value!r} must be a finite number of float32")
    elif 0 < abs(value) < _SMALLEST:
        raise UserError(f"{where} = {value!r} must be 0, or at least float32's smallest, {_SMALLEST:.2g}")


def _is_mapping(value: Any) -> bool:
    return hasattr(value, "keys") and hasattr(value, "__getitem__")
