"""Reading a compiled program: what moves between devices, and between memory and cores, loops counted as they run."""

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\]"
    r"(?:, device_ids=\(\[(?P<shape>[\d,]+)\](?:T\((?P<turned>[\d,]+)\))?\))? *\{(?P<axes>[^}]*)\}"
)
# A kernel's attributes may run over several lines, and those may start with braces too.
_END = re.compile(r"^\}(?:, execution_thread=.*)?$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|condition)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# What moves no bytes of its own.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all async-start async-update "
    "async-done copy-done all-gather-done all-reduce-done collective-permute-done send recv send-done recv-done "
    "partition-id replica-id iota opt-barrier".split()
)


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


@dataclasses.dataclass
class _Instruction:
    name: str
    kind: str
    arrays: list[tuple[str, tuple[int, ...]]]
    operands: list[str]
    text: str

    @property
    def bytes(self) -> float:
        return sum(_size(*array) for array in self.arrays)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Attributes:
    collectives: largest first.
    bytes: read and written by one device in a step: operands and results of every fused kernel, slices as slices.
    unknown_loops: loops whose number of rounds the program does not say.
    """

    collectives: tuple[Collective, ...]
    bytes: float
    unknown_loops: int


def read_program(text: str, granules: Sequence[int], trips: float, cut: bool = False) -> Traffic:
    """What a compiled program moves.

    Args:
        text: HLO of one device's program, as `compiled.as_text()` gives it.
        granules: slice or node of each device, in the mesh's order.
        trips: rounds of a loop whose number is known only at run time.
        cut: the text is of before optimisation, where an all-reduce that is only cut afterwards will become a
            reduce-scatter. (In optimised text it is one within a fusion alone.)
    """
    computations, entry = _parse(text)
    found: dict[tuple[str, str, int, bool], list[float]] = defaultdict(lambda: [0.0, 0.0])
    moved, unknown = 0.0, 0

    def visit(name: str, times: float, fused: bool) -> None:
        nonlocal moved, unknown
        table = {i.name: i for i in computations.get(name, ())}
        for instruction in table.values():
            kind = instruction.kind.removesuffix("-start")
            if kind in KINDS:
                parts = _kept_parts(instruction, table) if (fused or cut) and kind == "all-reduce" else []
                row = _collective(instruction, kind, granules, parts)
                total = found[row[:4]]
                total[0] += times
                total[1] += times * row[4]
            if instruction.kind == "while":
                known = _rounds(instruction.text, computations)
                unknown += known is None
                rounds = trips if known is None else known
                for called in _called(instruction.text):
                    visit(called, times * rounds, fused)
                continue
            if not fused and instruction.kind not in _FREE:
                moved += times * _moved(instruction, table, computations)
            if instruction.kind in ("fusion", "call", "conditional", "async-start"):
                for called in _called(instruction.text):
                    visit(called, times, fused or instruction.kind == "fusion")

    visit(entry, 1.0, False)
    rows = (Collective(*key, count=total[0], bytes=total[1]) for key, total in found.items())
    return Traffic(tuple(sorted(rows, key=lambda c: -c.bytes)), moved, unknown)


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
    for size in ways:
        parts |= {part * size for part in parts}
    widths = {width // part for part in parts if width % part == 0}
    found = []
    for collective in collectives:
        for _, shape in _arrays(collective.shape):
            if vocabulary in shape and math.prod(shape) // vocabulary not in widths and math.prod(shape) > vocabulary:
                found.append(collective)
    return tuple(found)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if body is None or not line.startswith(" "):
            if match := _COMPUTATION.match(line):
                body = computations.setdefault(match[2], [])
                entry = match[2] if match[1] else entry
            elif _END.match(line):
                body = None
            continue
        if match := _INSTRUCTION.match(line):
            body.append(_instruction(match[1], match[2]))
    return computations, entry


def _instruction(name: str, rest: str) -> _Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else _type_end(rest)
    result, call = rest[:end], rest[end:].lstrip()
    kind, _, arguments = call.partition("(")
    close = _closing("(" + arguments, 0)
    operands = re.findall(r"%([\w.\-]+)", arguments[: max(close - 1, 0)])
    return _Instruction(name, kind.strip(), list(_arrays(result)), operands, call)


def _type_end(text: str) -> int:
    """End of an array type, whose layout may hold spaces and parentheses."""
    brace = text.find("{")
    space = text.find(" ")
    return text.find("}", brace) + 1 if -1 < brace < space else space


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1


def _arrays(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, extents in _ARRAY.findall(text):
        if dtype in _BYTES:
            yield dtype, tuple(int(n) for n in extents.split(",") if n)


def _size(dtype: str, shape: tuple[int, ...]) -> float:
    return _BYTES[dtype] * math.prod(shape)


def _called(text: str) -> list[str]:
    names = []
    for single, several in _CALLED.findall(text):
        names += [single] if single else [name.strip().lstrip("%") for name in several.split(",")]
    return names


def _rounds(text: str, computations: dict[str, list[_Instruction]]) -> float | None:
    """Rounds of a loop: what the compiler noted, or the constant its counter (from 0) is compared with."""
    if known := _TRIPS.search(text):
        return float(known[1])
    match = re.search(r"condition=%?([\w.\-]+)", text)
    body = computations.get(match[1], []) if match else []
    if not body or body[-1].kind != "compare" or "direction=LT" not in body[-1].text:
        return None
    bound = {i.name: i for i in body}.get(body[-1].operands[-1])
    number = re.match(r"constant\((\d+)\)", bound.text) if bound else None
    return float(number[1]) if number else None


def _moved(instruction: _Instruction, table: dict[str, _Instruction], computations: dict) -> float:
    """Bytes of operands and results; of what is sliced or updated in place, only the slice."""
    if instruction.kind == "dynamic-slice":
        return 2 * instruction.bytes
    if instruction.kind == "dynamic-update-slice":
        return 2 * (table[instruction.operands[1]].bytes if instruction.operands[1] in table else 0.0)
    sizes = [table[name].bytes if name in table else 0.0 for name in instruction.operands]
    if instruction.kind != "fusion":
        return instruction.bytes + sum(sizes)
    body = computations.get((_called(instruction.text) or [""])[0], [])
    inner = {i.name: i for i in body}
    users: dict[str, list[_Instruction]] = defaultdict(list)
    for each in body:
        for name in each.operands:
            users[name].append(each)
    total, written = 0.0, instruction.bytes
    parameters = [i for i in body if i.kind == "parameter"]
    for parameter in parameters:
        uses = users[parameter.name]
        if uses and all(u.kind == "dynamic-slice" for u in uses):
            total += sum(u.bytes for u in uses)
        elif uses and all(u.kind == "dynamic-update-slice" and u.operands[0] == parameter.name for u in uses):
            update = sum(inner[u.operands[1]].bytes for u in uses if u.operands[1] in inner)
            total += update
            written += update - parameter.bytes
        else:
            total += parameter.bytes
    return total + max(written, 0.0)


def _kept_parts(reduced: _Instruction, table: dict[str, _Instruction]) -> list[tuple[str, tuple[int, ...]]]:
    """The slices that a fused all-reduce is at once cut to: a reduce-scatter, as libtpu writes it. [] = it is none."""
    parts, names = [], {reduced.name}
    for user in table.values():  # in order: operands come first
        if not names & set(user.operands):
            continue
        if user.kind in ("get-tuple-element", "bitcast"):
            names.add(user.name)
        elif user.kind == "dynamic-slice":
            parts += user.arrays
        else:
            return []
    return parts


def _collective(
    instruction: _Instruction, kind: str, granules: Sequence[int], parts: list[tuple[str, tuple[int, ...]]]
) -> tuple[str, str, int, bool, float]:
    """Kind, shape, size of a group, whether it crosses granules, bytes sent; `parts` as `_kept_parts` says."""
    groups = _groups(instruction.text, len(granules))
    size = max((len(group) for group in groups), default=1)
    crosses = any(len({granules[i] for i in group if i < len(granules)}) > 1 for group in groups)
    if parts:
        kind = "reduce-scatter"
    arrays = parts or instruction.arrays
    if instruction.kind.endswith("-start") and len(arrays) > 1 and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :] if kind != "collective-permute" else arrays[:1]
    whole = sum(_size(*a) for a in arrays) * (size if kind == "reduce-scatter" else 1)
    share = (size - 1) / size if size else 0.0
    sent = whole * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    return kind, _shapes(arrays), size, crosses, sent


def _shapes(arrays: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    counts = Counter(sorted(arrays, key=lambda array: -_size(*array)))
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
