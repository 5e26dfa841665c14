"""Configs are built or refused: every number of every config is tried with values that no config can mean."""

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pytest

import omnidiff_jax
from omnidiff_jax.config import Count, DecayRate, Range, build, check_fields, to_dict
from omnidiff_jax.errors import UserError

# Where a negative number means something.
NEGATIVE = {
    "MeshConfig.data", "MeshConfig.fsdp", "MeshConfig.tensor", "MeshConfig.sequence",  # the rest of the devices
    "Augmentation.babble_db", "Augmentation.floor_db", "FlowConfig.mel_mean",
}  # fmt: skip
ROOMS_THAT_CHECK_THEIR_OWN = ("omnidiff_jax.sampling.",)


def parts(hint):
    """`hint` and all that it is made of."""
    yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


def configs() -> dict[str, type]:
    """Every dataclass that is a config by name, and those within them."""
    found: dict[str, type] = {}

    def add(cls):
        if cls.__qualname__ in found:
            return
        found[cls.__qualname__] = cls
        for hint in typing.get_type_hints(cls, include_extras=True).values():
            for part in parts(hint):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    add(part)

    for module in pkgutil.walk_packages(omnidiff_jax.__path__, "omnidiff_jax."):
        # What stands in a file for an interpreter that has torch is no module of ours.
        if module.name.rpartition(".")[2].startswith(("torch_", "__main__")):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            named = name.endswith(("Config", "Training", "Decoding")) and isinstance(value, type)
            if named and dataclasses.is_dataclass(value) and value.__module__.startswith("omnidiff_jax."):
                add(value)
    return found


CONFIGS = configs()


def least(hint: Any) -> Any:
    """A value of a field without a default."""
    if typing.get_origin(hint) is Annotated:
        return 1
    if dataclasses.is_dataclass(hint):
        return given(hint)
    if typing.get_origin(hint) in (dict, Mapping):
        return {"a": least(typing.get_args(hint)[1])}
    return {int: 1, float: 1.0, str: "x", bool: True}.get(hint, ())


def given(cls) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]
    return {name: least(hints[name]) for name in required}


def numbers(hint: Any) -> set[type]:
    """The types of number in a field's type."""
    return {part for part in parts(hint) if part in (int, float)}


def shaped(hint: Any, value: Any, default: Any) -> list[Any]:
    """`value` where a field of this type holds a number: itself, or within a tuple or a group."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return shaped(args[0], value, default)
    if origin is tuple:
        rest = list(default) if isinstance(default, tuple) else []
        inner = shaped(args[0], value, rest[0] if rest else None)
        return [[one, *rest[1:]] for one in inner]
    if origin in (dict, Mapping):
        return [{"key": one} for one in shaped(args[1], value, None)]
    if hint in (int, float):
        return [value]
    return [one for arg in args for one in shaped(arg, value, default)]


def fields():
    for name, cls in sorted(CONFIGS.items()):
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            if field.init and numbers(hints[field.name]):
                yield pytest.param(cls, field, hints[field.name], id=f"{name}.{field.name}")


def test_the_walk_finds_the_configs():
    """By name, so that a config which is called otherwise is noticed."""
    assert {"OptimizerConfig", "BackboneConfig", "MeshConfig", "DcnConfig", "GuardConfig", "LossConfig", "LoraConfig",
            "InitConfig", "PackingConfig", "MagvitConfig", "Augmentation", "SamplerConfig", "HiftConfig",
            "Decoding"} <= CONFIGS.keys()  # fmt: skip


@pytest.mark.parametrize(("cls", "field", "hint"), list(fields()))
def test_no_number_slips_through(cls, field, hint):
    base = given(cls)
    build(cls, base)
    accepted = set()
    for value in (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, 10**30, 2**63, 1e-320, -1, -1.0, -1.5, 0, 0.0):
        for whole in shaped(hint, value, getattr(cls, field.name, None)):
            try:
                build(cls, base | {field.name: whole})
            except UserError as error:
                assert field.name in str(error) or "config" in str(error)
            else:
                accepted.add(value)
    for value in accepted:
        if isinstance(value, float):
            assert abs(value) <= 3.5e38 and not 0 < abs(value) < 1e-38, "float32 holds no such number"
        else:
            assert abs(value) < 2**63 or float in numbers(hint)
    if not cls.__module__.startswith(ROOMS_THAT_CHECK_THEIR_OWN):
        negative = f"{cls.__qualname__}.{field.name}" in NEGATIVE
        assert negative == bool(accepted & {-1, -1.5}), "say its range in its type, or in NEGATIVE that it has none"


@dataclasses.dataclass(frozen=True)
class Inner:
    rates: dict[str, DecayRate] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outer:
    size: Count
    inner: Inner = Inner()
    levels: tuple[Count, ...] = (1,)
    share: Annotated[float, Range(above=0, at_most=1)] | None = None
    free: float = 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "config.size = 0 must be at least 1"),
        ({"size": 2**31}, "config.size = 2147483648 must be at most 2147483647"),
        ({"size": True}, "config.size = True must be int, not bool"),
        ({"size": 1.5}, "config.size = 1.5 must be int, not float"),
        ({"inner": {"rates": {"a": 1.0}}}, "config.inner.rates.a = 1.0 must be below 1"),
        ({"levels": [1, -2]}, r"config.levels\[1\] = -2 must be at least 1"),
        ({"share": 0}, "config.share = 0.0 must be above 0"),
        ({"share": math.nan}, "config.share = nan must be a finite number of float32"),
        ({"free": 10**400}, "config.free = inf must be a finite number"),
        ({"free": 1e39}, "config.free = 1e.39 must be a finite number of float32"),
        ({"free": 1e-39}, "config.free = 1e-39 must be 0, or at least float32's smallest"),
    ],
)
def test_a_refusal_names_field_value_and_bound(change, said):
    with pytest.raises(UserError, match=f"^{said}"):
        build(Outer, {"size": 3} | change)


def test_ranges_keep_what_is_within_them():
    whole = {"size": 3, "inner": {"rates": {"a": 0}}, "levels": [2, 3], "share": 1, "free": -1e30}
    made = build(Outer, whole)
    assert (made.inner.rates, made.levels, made.share) == ({"a": 0.0}, (2, 3), 1.0)
    assert build(Outer, to_dict(made)) == made
    check_fields(made, "config")
    with pytest.raises(UserError, match=r"missing key config.size \(int\)"):
        build(Outer, {})
    with pytest.raises(UserError, match="config.levels = 3 must be a list"):
        check_fields(Outer(3, levels=3), "config")
