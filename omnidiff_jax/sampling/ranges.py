"""Ranges of the sampler's numbers, checked where settings are made: a NaN would surface far from its cause."""

from typing import Any

from omnidiff_jax.errors import UserError

MOST = 1e6
"""Largest penalty, temperature, scale and the like: products with any logit, masked ones too, stay within float32."""
LEAST = 1e-6
"""Smallest divisor."""
POSITIONS = 1 << 24
"""Longest answer anybody can ask for; the canvas has a limit of its own."""


class OutOfRange(UserError, ValueError):
    """One line for the user as it stands; `config.build` puts the path of the settings before it."""


def within(settings: Any, name: str, low: float, high: float, off: float | None = None, note: str = "") -> None:
    """Raises `OutOfRange` unless the field `name` of `settings` is a number from `low` to `high`, or `off`.

    Args:
        note: what `off` does, or what to do instead.
    """
    value = getattr(settings, name)
    if low <= value <= high or value == off:  # False for NaN
        return
    other = "" if off is None else f", or {off:g}"
    raise OutOfRange(f"{name} = {value!r} must be a number from {low:.8g} to {high:.8g}{other}{note and f' ({note})'}")
