"""Bijections between PyTorch state dicts and Flax parameter trees, written as tables of rules.

A rule names one tensor (or one tensor per layer) on both sides and the layout change between them:

    Rule("layers.{n}.self_attn.q_proj.weight", "layers/attention/query/kernel", "linear")

`{n}` stands for a layer index. Also in the target it gives one flax leaf per layer; absent from the target
it means that the flax leaf stacks the layers on a leading axis, as `nn.scan` does (several absent indices
make several leading axes, in the order of the source). `{n:2:5}` restricts the index to 2, 3, 4 (`{n:2:}`:
from 2 on), stacked from 0, so that one list of torch layers can feed two scans.

Nothing is guessed: a tensor that no rule names, or two name, a rule that finds nothing, a hole in the layer
numbers are all a `UserError`. The way back gives the same bits.

`plan` alone says what goes where, from names only, so that a converter may stream tensor by tensor; `to_flax`
also takes a mapping of loaders (callables without arguments), each called once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from omnidiff_jax.errors import UserError

DROPPED = ""
"""Target of a rule whose source is knowingly left behind (a buffer nobody needs); the way back omits it."""


@dataclass(frozen=True)
class Rule:
    """One correspondence.

    Attributes:
        source: torch name pattern, "." between parts, `{n}`-style layer indices.
        target: flax path pattern, "/" between parts, or `DROPPED`.
        transform: layout change, a key of `TRANSFORMS`, with integers after a colon where it takes them.
        optional: the source may be absent from a state dict (the target is then absent too).
    """

    source: str
    target: str
    transform: str = "none"
    optional: bool = False


@dataclass(frozen=True)
class Assignment:
    """One torch tensor's place: `target[index] = forward(transform)(source)`."""

    source: str
    target: str
    index: tuple[int, ...]
    transform: str


# ---- layouts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """A layout change and its inverse; both only transpose, reshape and reverse, so they keep every bit."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]


def _axes(*order: int) -> Transform:
    back = tuple(int(i) for i in np.argsort(order))
    return Transform(lambda x: x.transpose(order), lambda x: x.transpose(back))


def _heads(*dims: int) -> Transform:
    """[heads * d] -> [*dims, d]: a bias, or any vector, of a projection into heads."""
    return Transform(lambda x: x.reshape(*dims, x.shape[0] // prod(dims)), lambda x: x.reshape(-1))


def _heads_out(*dims: int) -> Transform:
    """[heads * d, in] -> [in, *dims, d]: a projection into heads (`dims` = (3, H) for a fused q, k, v)."""
    return Transform(
        lambda x: x.T.reshape(x.shape[1], *dims, x.shape[0] // prod(dims)),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def _heads_in(heads: int) -> Transform:
    """[out, heads * d] -> [heads, d, out]: a projection out of heads."""
    return Transform(
        lambda x: x.T.reshape(heads, x.shape[1] // heads, x.shape[0]), lambda x: x.reshape(-1, x.shape[-1]).T
    )


TRANSFORMS: dict[str, Transform | Callable[..., Transform]] = {
    "none": Transform(lambda x: x, lambda x: x),
    "linear": _axes(1, 0),  # [out, in] -> [in, out]
    "conv1d": _axes(2, 1, 0),  # [out, in / groups, k] -> [k, in / groups, out]
    "conv2d": _axes(2, 3, 1, 0),  # [out, in, h, w] -> [h, w, in, out]
    # [in, out, k] -> [k, in, out], k reversed: torch scatters the kernel, `lax.conv_transpose` correlates.
    "conv_transpose1d": Transform(lambda x: x.transpose(2, 0, 1)[::-1], lambda x: x[::-1].transpose(1, 2, 0)),
    "pointwise1d": Transform(lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]),  # [out, in, 1] -> [in, out]
    "heads": _heads,
    "heads_out": _heads_out,
    "heads_in": _heads_in,
}


@cache
def transform(name: str) -> Transform:
    """Looks a layout change up: "linear", "heads_out:4", "heads_out:3,4", …"""
    base, _, arguments = name.partition(":")
    if base not in TRANSFORMS:
        raise UserError(f"conversion rule: unknown transform {name!r}; known: {', '.join(sorted(TRANSFORMS))}")
    found = TRANSFORMS[base]
    return found if isinstance(found, Transform) else found(*(int(a) for a in arguments.split(",")))


# ---- patterns ---------------------------------------------------------------------------------------------

_INDEX = re.compile(r"\{(\w+)(?::(\d+):(\d*))?\}")


@dataclass(frozen=True)
class _Pattern:
    """A rule taken apart: how its two names match and which indices are stacked."""

    rule: Rule
    source: re.Pattern
    target: re.Pattern
    stacked: tuple[str, ...]
    bounds: Mapping[str, tuple[int, int | None]]

    def format(self, name: str, values: Mapping[str, int]) -> str:
        return _INDEX.sub(lambda m: str(values[m[1]]), name)

    def values(self, match: re.Match) -> dict[str, int] | None:
        """Layer indices of a match, None if one is out of the rule's bounds."""
        found = {name: int(text) for name, text in match.groupdict().items()}
        for name, value in found.items():
            start, stop = self.bounds[name]
            if value < start or (stop is not None and value >= stop):
                return None
        return found


def _regex(name: str) -> re.Pattern:
    parts, end = [], 0
    for m in _INDEX.finditer(name):
        parts += [re.escape(name[end : m.start()]), rf"(?P<{m[1]}>\d+)"]
        end = m.end()
    return re.compile("".join(parts) + re.escape(name[end:]))


@cache
def _pattern(rule: Rule) -> _Pattern:
    transform(rule.transform)
    bounds = {m[1]: (int(m[2] or 0), int(m[3]) if m[3] else None) for m in _INDEX.finditer(rule.source)}
    in_target = [m[1] for m in _INDEX.finditer(rule.target)]
    if rule.target != DROPPED and not set(in_target) <= set(bounds):
        raise UserError(f"conversion rule {rule.source!r}: target {rule.target!r} has an index its source lacks")
    stacked = tuple(name for name in bounds if name not in in_target)
    return _Pattern(rule, _regex(rule.source), _regex(rule.target), stacked, bounds)


def _only(matches: list[tuple[_Pattern, dict[str, int]]], name: str) -> tuple[_Pattern, dict[str, int]]:
    if len(matches) > 1:
        rules = " and ".join(repr(p.rule.source) for p, _ in matches)
        raise UserError(f"conversion: {name!r} is named by two rules, {rules}; exactly one must name it")
    return matches[0]


def _listing(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# ---- torch -> flax ----------------------------------------------------------------------------------------


def plan(rules: Sequence[Rule], names: Iterable[str]) -> tuple[Assignment, ...]:
    """Where each torch tensor goes.

    Args:
        rules: the module's table.
        names: the state dict's tensor names.

    Returns:
        One assignment per tensor that is not dropped, grouped by target, stacked ones in index order.

    Raises:
        UserError: a tensor no rule (or more than one) names, a rule without its tensors, layers missing
            from a stack, or two tensors with one place; the message lists the names.
    """
    patterns = [_pattern(rule) for rule in rules]
    places: dict[str, dict[tuple[int, ...], Assignment]] = defaultdict(dict)
    owner: dict[str, _Pattern] = {}
    used: set[Rule] = set()
    unknown = []
    for name in names:
        matches = [(p, v) for p in patterns if (m := p.source.fullmatch(name)) and (v := p.values(m)) is not None]
        if not matches:
            unknown.append(name)
            continue
        pattern, values = _only(matches, name)
        used.add(pattern.rule)
        if pattern.rule.target == DROPPED:
            continue
        target = pattern.format(pattern.rule.target, values)
        index = tuple(values[n] - pattern.bounds[n][0] for n in pattern.stacked)
        if index in places[target]:
            raise UserError(f"conversion: {name!r} and {places[target][index].source!r} both fill {target!r}")
        places[target][index] = Assignment(name, target, index, pattern.rule.transform)
        owner[target] = pattern
    if unknown:
        raise UserError(
            f"conversion: {len(unknown)} tensors have no rule (another model or size?): {_listing(unknown)}"
        )
    if missing := [rule.source for rule in rules if rule not in used and not rule.optional]:
        raise UserError(f"conversion: the state dict lacks {len(missing)} tensors: {_listing(missing)}")
    for target, stack in places.items():
        bounds = [owner[target].bounds[n] for n in owner[target].stacked]
        shape = [
            max(index[axis] for index in stack) + 1 if stop is None else stop - start
            for axis, (start, stop) in enumerate(bounds)
        ]
        if prod(shape) != len(stack):
            absent = next(i for i in np.ndindex(*shape) if i not in stack)
            layer = ".".join(str(i + start) for i, (start, _) in zip(absent, bounds, strict=True))
            raise UserError(f"conversion: the state dict lacks layer {layer} of the stack {target!r}")
    return tuple(places[target][index] for target in places for index in sorted(places[target]))


def iter_flax(rules: Sequence[Rule], state_dict: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (flax path, whole leaf), loading only that leaf's tensors; arguments as in `to_flax`."""
    grouped: dict[str, list[Assignment]] = defaultdict(list)
    for assignment in plan(rules, state_dict):
        grouped[assignment.target].append(assignment)
    for target, group in grouped.items():
        leaf: np.ndarray | None = None
        for a in group:
            value = state_dict[a.source]
            value = transform(a.transform).forward(value() if callable(value) else value)
            if leaf is None:
                lead = tuple(i + 1 for i in group[-1].index)
                leaf = np.empty(lead + value.shape, value.dtype)
            if leaf.shape[len(a.index) :] != value.shape or leaf.dtype != value.dtype:
                raise UserError(
                    f"conversion: {a.source!r} is {value.dtype}{list(value.shape)} where its stack "
                    f"{target!r} holds {leaf.dtype}{list(leaf.shape[len(a.index) :])}"
                )
            leaf[a.index] = value
        assert leaf is not None
        yield target, leaf


def to_flax(rules: Sequence[Rule], state_dict: Mapping[str, Any], like: Any = None) -> dict:
    """Converts a state dict to a parameter tree.

    Args:
        rules: the module's table.
        state_dict: torch name -> array, or -> callable without arguments that reads it (called once each).
        like: abstract parameter tree (`jax.eval_shape` of init) whose leaves and shapes the result must have.

    Returns:
        Nested dict of numpy arrays, dtypes as in the state dict.

    Raises:
        UserError: as `plan`; or leaves missing, left over or of another shape than in `like`.
    """
    flat = dict(iter_flax(rules, state_dict))
    if like is not None:
        expected = {path: tuple(leaf.shape) for path, leaf in flat_params(like).items()}
        if names := expected.keys() - flat.keys():
            raise UserError(f"conversion: {len(names)} parameters of the model stay unfilled: {_listing(names)}")
        if names := flat.keys() - expected.keys():
            raise UserError(f"conversion: the model has no place for {len(names)} tensors: {_listing(names)}")
        for path, leaf in flat.items():
            if leaf.shape != expected[path]:
                raise UserError(
                    f"conversion: {path!r} has shape {list(leaf.shape)} in the state dict, "
                    f"{list(expected[path])} in the model; the config is of another size"
                )
    return unflatten_dict(flat, sep="/")


# ---- flax -> torch ----------------------------------------------------------------------------------------


def flat_params(params: Any) -> dict[str, Any]:
    """Parameter tree (boxed or not, or already flat) -> {"/"-joined path: leaf}."""
    return flatten_dict(nn.meta.unbox(params), sep="/")


def plan_inverse(rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]]) -> tuple[Assignment, ...]:
    """Which torch tensors each flax leaf gives; the inverse of `plan`.

    Args:
        rules: the module's table.
        shapes: flax path -> shape (leading axes of stacked leaves are counted from it).

    Raises:
        UserError: a leaf no rule (or more than one) names, or a rule without its leaf.
    """
    patterns = [p for p in map(_pattern, rules) if p.rule.target != DROPPED]
    assignments, unknown, used = [], [], set()
    for path, shape in shapes.items():
        matches = [(p, v) for p in patterns if (m := p.target.fullmatch(path)) and (v := p.values(m)) is not None]
        if not matches:
            unknown.append(path)
            continue
        pattern, values = _only(matches, path)
        used.add(pattern.rule)
        lead = tuple(shape[: len(pattern.stacked)])
        for size, name in zip(lead, pattern.stacked, strict=True):
            start, stop = pattern.bounds[name]
            if stop is not None and size != stop - start:
                raise UserError(f"conversion: {path!r} stacks {size} layers, its rule says {stop - start}")
        for index in np.ndindex(*lead):
            layers = {n: i + pattern.bounds[n][0] for n, i in zip(pattern.stacked, index, strict=True)}
            source = pattern.format(pattern.rule.source, {**values, **layers})
            assignments.append(Assignment(source, path, tuple(index), pattern.rule.transform))
    if unknown:
        raise UserError(f"conversion: {len(unknown)} parameters have no rule (another model?): {_listing(unknown)}")
    missing = [p.rule.target for p in patterns if p.rule not in used and not p.rule.optional]
    if missing:
        raise UserError(f"conversion: the parameters lack {len(missing)} leaves: {_listing(missing)}")
    return tuple(assignments)


def iter_torch(rules: Sequence[Rule], params: Any) -> Iterator[tuple[str, Any]]:
    """Yields (torch name, array); `params` as in `to_torch`, one leaf loaded at a time."""
    flat = flat_params(params)
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    for a in plan_inverse(rules, shapes):
        yield a.source, transform(a.transform).inverse(flat[a.target][a.index] if a.index else flat[a.target])


def to_torch(rules: Sequence[Rule], params: Any) -> dict[str, Any]:
    """Converts a parameter tree (nested or flat, boxed or not; numpy or jax leaves) to a state dict."""
    return dict(iter_torch(rules, params))


def torch_shapes(rules: Sequence[Rule], params: Any) -> dict[str, tuple[int, ...]]:
    """State-dict name -> shape of a parameter tree, which may be abstract (`jax.eval_shape` of init)."""
    abstract = jax.eval_shape(lambda p: to_torch(rules, p), nn.meta.unbox(params))
    return {name: tuple(leaf.shape) for name, leaf in abstract.items()}
