"""What a compiled program moves: between devices, and between memory and cores, loops counted as often as they run."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnidiff_jax.preflight.hlo import Array, Computations, Instruction, arrays, called, parse, rounds, size

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\]"
    r"(?:, device_ids=\(\[(?P<shape>[\d,]+)\](?:T\((?P<turned>[\d,]+)\))?\))? *\{(?P<axes>[^}]*)\}"
)
# What moves no bytes of its own.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all async-start async-update "
    "send recv partition-id replica-id iota opt-barrier".split()
)

# What reads a part of its first operand; what, within a fusion, is computed of those parts alone that are asked for.
_PARTS = frozenset(("dynamic-slice", "slice", "gather"))
_ON_DEMAND = frozenset(("bitcast", "copy", "convert", "reshape", "transpose"))


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of one shape.

    Attributes:
        kind: a name in `KINDS`.
        shape: dtype and extents of the arrays that one device ends up with (of `reduce-scatter`: the part), largest
            first, as in `2*bf16[3584,18944] f32[512]`.
        group: devices that exchange.
        crosses: whether a group spans slices or nodes.
        count: times a step, rounds of loops included.
        bytes: sent by one device in a step, all rounds together, by a ring algorithm.
    """

    kind: str
    shape: str
    group: int
    crosses: bool
    count: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one step moves, between devices and within one.

    Attributes:
        collectives: largest first.
        bytes: read from and written to one device's memory in a step: operands and results of every fused kernel,
            slices as slices; what stays on the cores (a TPU's vector memory) is not counted.
        unknown_loops: loops whose number of rounds the program does not say.
    """

    collectives: tuple[Collective, ...]
    bytes: float
    unknown_loops: int


@dataclasses.dataclass
class _Sum:
    """What a computation moves: bytes of memory, and by kind, shape, group and crossing how often and how many bytes
    are exchanged."""

    bytes: float = 0.0
    unknown: int = 0
    exchanged: dict[Any, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def add(self, other: "_Sum", times: float = 1.0) -> None:
        self.bytes += times * other.bytes
        self.unknown += other.unknown
        for key, (count, sent) in other.exchanged.items():
            before = self.exchanged.get(key, (0.0, 0.0))
            self.exchanged[key] = before[0] + times * count, before[1] + times * sent


@dataclasses.dataclass(frozen=True)
class _Use:
    """Of a fusion's parameter: bytes that are read, bytes of the result that are its own memory, left as they were, and
    whether the result is the parameter, laid out anew."""

    read: float = 0.0
    replaced: float = 0.0
    handed_on: bool = False


def read_program(
    text: str, granules: Sequence[int], trips: Sequence[float], cut: bool = False, rounds_only: bool = False
) -> Traffic:
    """What a compiled program moves.

    Of a conditional one branch counts: the dearest of several, the cheaper of two, which are taken for a rule and its
    fallback, so that no run can undercut the sum.

    Args:
        text: HLO of one device's program, as `compiled.as_text()` gives it.
        granules: slice or node of each device, in the mesh's order.
        trips: rounds of the loops whose number is known only at run time, the outermost first; the last number stands
            for all loops further in.
        cut: the text is of before optimisation, where an all-reduce that is only cut afterwards will become a
            reduce-scatter. (In optimised text it is one within a fusion alone.)
        rounds_only: counts the outermost such loops alone, not what is done once before and after them.
    """
    computations, entry = parse(text)

    def visit(name: str, trips: Sequence[float], fused: bool) -> _Sum:
        total = _Sum()
        table = {i.name: i for i in computations.get(name, ())}
        for instruction in table.values():
            kind, inner = instruction.kind.removesuffix("-start"), called(instruction.text)
            if kind in KINDS:
                parts = _kept_parts(instruction, table, granules) if (fused or cut) and kind == "all-reduce" else []
                *row, sent = _collective(instruction, kind, granules, parts)
                total.add(_Sum(exchanged={tuple(row): (1.0, sent)}))
            if instruction.kind == "while":
                known = rounds(instruction.text, computations)
                within = trips if known is not None else trips[1:] or trips
                for name in inner:
                    total.add(visit(name, within, fused), trips[0] if known is None else known)
                total.unknown += known is None
                continue
            if not fused and instruction.kind not in _FREE and not instruction.kind.endswith("-done"):
                total.bytes += _moved(instruction, table, computations)
            if instruction.kind == "conditional":
                branches = sorted((visit(name, trips, fused) for name in inner), key=lambda branch: branch.bytes)
                total.add(branches[0 if len(branches) == 2 else -1])
            elif instruction.kind in ("fusion", "call", "async-start"):
                for name in inner:
                    total.add(visit(name, trips, fused or instruction.kind == "fusion"))
        return total

    total = visit(entry, trips, False)
    if rounds_only:
        loops = [i for i in computations[entry] if i.kind == "while" and rounds(i.text, computations) is None]
        total = _Sum(unknown=len(loops))
        for name in (name for loop in loops for name in called(loop.text)):
            total.add(visit(name, trips[1:] or trips, False), trips[0])
    rows = (
        Collective(kind, shape, group, crosses, count=count, bytes=sent)
        for (kind, shape, group, crosses), (count, sent) in total.exchanged.items()
    )
    return Traffic(tuple(sorted(rows, key=lambda c: -c.bytes)), total.bytes, total.unknown)


def carries_logits(
    collectives: Sequence[Collective], vocabulary: int, width: int, ways: Sequence[int]
) -> tuple[Collective, ...]:
    """The collectives that move logits of the whole vocabulary.

    An array with an axis of V is the head, the embedding table or their gradients where its other axes multiply to
    the width D, or to a part of it that some mesh axes make; anything else with an axis of V is logits.

    Args:
        vocabulary: V.
        width: D.
        ways: sizes of the mesh axes.
    """
    parts = {1}
    for way in ways:
        parts |= {part * way for part in parts}
    widths = {width // part for part in parts if width % part == 0}
    found = []
    for collective in collectives:
        for _, shape in arrays(collective.shape):
            if vocabulary in shape and math.prod(shape) // vocabulary not in widths and math.prod(shape) > vocabulary:
                found.append(collective)
    return tuple(found)


def _moved(instruction: Instruction, table: dict[str, Instruction], computations: Computations) -> float:
    """Bytes that a kernel reads from and writes to a device's memory; of what is cut or updated in place, the part."""
    operands = [table[name] for name in instruction.operands if name in table]
    if 'custom_call_target="AllocateBuffer"' in instruction.text:
        return 0.0
    if instruction.kind == "copy-start":  # its result names both ends
        return instruction.memory_bytes
    if instruction.kind.endswith("slice-start"):  # and this one's the whole source, the part, and a flag
        part = size(instruction.arrays[1])
        return part + (0.0 if instruction.on_chip[1] else part)
    if instruction.kind in _PARTS:
        return instruction.memory_bytes + (instruction.bytes if operands and operands[0].memory_bytes else 0.0)
    if instruction.kind == "dynamic-update-slice":
        update = operands[1] if len(operands) > 1 else None
        return (update.memory_bytes + (update.bytes if instruction.memory_bytes else 0.0)) if update else 0.0
    if instruction.kind != "fusion":
        return instruction.memory_bytes + sum(operand.memory_bytes for operand in operands)
    body = computations.get((called(instruction.text) or [""])[0], [])
    total, written = 0.0, instruction.memory_bytes
    for number, operand in enumerate(operands):
        if operand.memory_bytes:
            use = _used(body, number, operand.bytes, computations)
            total += operand.bytes if use.handed_on else use.read
            written -= use.replaced if written else 0.0
    return total + max(written, 0.0)


def _used(body: list[Instruction], number: int, whole: float, computations: Computations) -> _Use:
    """What a fusion does with its parameter `number` of `whole` bytes. Fusions lie within fusions on TPUs."""
    inner = {i.name: i for i in body}
    found = [i for i in body if i.kind == "parameter" and i.text.startswith(f"parameter({number})")]
    names = {i.name for i in found}
    each = whole / max(_elements(found[0]), 1) if found else 0.0
    use = _Use()
    for user in body:  # in order: operands come first
        at = [place for place, name in enumerate(user.operands) if name in names]
        if not at:
            continue
        if user.kind in _ON_DEMAND:
            names.add(user.name)
        elif user.kind in _PARTS and at == [0]:
            use = _Use(use.read + each * _elements(user), use.replaced)
        elif user.kind == "dynamic-update-slice" and at == [0]:
            update = inner[user.operands[1]].bytes if user.operands[1] in inner else 0.0
            use = _Use(use.read + update, use.replaced + whole - update)
        elif user.kind == "fusion":
            within = computations.get((called(user.text) or [""])[0], [])
            for more in (_used(within, place, whole, computations) for place in at):
                use = _Use(use.read + more.read, use.replaced + more.replaced)
                names |= {user.name} if more.handed_on else set()
        else:
            return _Use(whole)
    return _Use(min(use.read, whole), min(use.replaced, whole), bool(body) and body[-1].name in names)


def _elements(instruction: Instruction) -> int:
    return sum(math.prod(shape) for _, shape in instruction.arrays)


def _kept_parts(reduced: Instruction, table: dict[str, Instruction], granules: Sequence[int]) -> list[Array]:
    """The slices that an all-reduce is at once cut to, one for each device of a group: a reduce-scatter, which libtpu
    writes so within a fusion. [] = it is none."""
    parts: list[Array] = []
    names = {reduced.name}
    for user in table.values():  # in order: operands come first
        if not names & set(user.operands):
            continue
        if user.kind in ("get-tuple-element", "bitcast"):
            names.add(user.name)
        elif user.kind == "dynamic-slice":
            parts += user.arrays
        else:
            return []
    ways = max((len(group) for group in _groups(reduced.text, len(granules))), default=1)
    parts = parts[: len(reduced.arrays)]  # two alike are one
    return parts if sum(map(size, parts)) * ways == reduced.bytes else []


def _collective(
    instruction: Instruction, kind: str, granules: Sequence[int], parts: list[Array]
) -> tuple[str, str, int, bool, float]:
    """Kind, shape, size of a group, whether it crosses granules, bytes sent; `parts` as `_kept_parts` says."""
    groups = _groups(instruction.text, len(granules))
    ways = max((len(group) for group in groups), default=1)
    crosses = any(len({granules[i] for i in group if i < len(granules)}) > 1 for group in groups)
    if parts:
        kind = "reduce-scatter"
    moved = parts or instruction.arrays
    if instruction.kind.endswith("-start") and len(moved) > 1 and kind != "all-reduce":
        moved = moved[len(moved) // 2 :] if kind != "collective-permute" else moved[:1]
    whole = sum(size(a) for a in moved) * (ways if kind == "reduce-scatter" else 1)
    share = (ways - 1) / ways
    sent = whole * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    return kind, _shapes(moved), ways, crosses, sent


def _shapes(arrays: Sequence[Array]) -> str:
    counts = Counter(sorted(arrays, key=lambda array: -size(array)))
    texts = {array: f"{array[0]}[{','.join(map(str, array[1]))}]" for array in counts}
    return " ".join(f"{count}*{texts[a]}" if count > 1 else texts[a] for a, count in counts.items())


def _groups(text: str, devices: int) -> list[list[int]]:
    """Devices that exchange with each other, in any of XLA's notations."""
    if match := _MESH_GROUPS.search(text):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match["sizes"])}
        names = list(sizes)
        inner = [names.index(name) for name in re.findall(r"'(\w+)'", match["axes"])]
        outer = [i for i in range(len(names)) if i not in inner]
        order = _order(match["shape"] or str(devices), match["turned"]).reshape(list(sizes.values()))
        return order.transpose(outer + inner).reshape(-1, math.prod(order.shape[i] for i in inner)).tolist()
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _order(match[2], match[3]).reshape(_numbers(match[1])).tolist()
    if match := re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\})", text):
        return json.loads(match[1].replace("{", "[").replace("}", "]"))
    if "replica_groups=mesh" in text:
        raise ValueError(f"unknown notation of a collective's devices: {text[text.index('replica_groups') :][:200]}")
    return [list(range(devices))]


def _order(shape: str, turned: str | None) -> np.ndarray:
    """Devices counted over `shape`, its axes then permuted: XLA's `[2,32]T(1,0)`."""
    sizes = _numbers(shape)
    order = np.arange(math.prod(sizes)).reshape(sizes)
    return order.transpose(_numbers(turned)) if turned else order


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
