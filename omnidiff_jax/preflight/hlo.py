"""The text of a compiled program (HLO) as computations of instructions."""

import dataclasses
import math
import re
from collections.abc import Iterator

Array = tuple[str, tuple[int, ...]]  # dtype and extents
Computations = dict[str, list["Instruction"]]

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
# A kernel's attributes may run over several lines, and those may start with braces too.
_END = re.compile(r"^\}(?:, execution_thread=.*)?$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|condition)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Memory spaces of a TPU that are on its cores: vector and scalar memory, semaphores.
_ON_CHIP = re.compile(r"S\([1-46-9]\)")


@dataclasses.dataclass
class Instruction:
    """One line of a compiled program.

    Attributes:
        name, kind: as in the text, `%name = … kind(…)`.
        arrays: what it results in.
        on_chip: whether each of them lies on the device's cores, not in its memory.
        operands: names of instructions of the same computation.
        text: from the kind on.
    """

    name: str
    kind: str
    arrays: list[Array]
    on_chip: list[bool]
    operands: list[str]
    text: str

    @property
    def bytes(self) -> float:
        """Of `arrays`."""
        return sum(size(array) for array in self.arrays)

    @property
    def memory_bytes(self) -> float:
        """Of those that lie in the device's memory."""
        return sum(size(array) for array, near in zip(self.arrays, self.on_chip, strict=True) if not near)


def parse(text: str) -> tuple[Computations, str]:
    """Computations by name, and the name of the one that is run."""
    computations: Computations = {}
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


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else _type_end(rest)
    result, call = rest[:end], rest[end:].lstrip()
    kind, _, arguments = call.partition("(")
    close = _closing("(" + arguments, 0)
    operands = re.findall(r"%([\w.\-]+)", arguments[: max(close - 1, 0)])
    located = list(_located(result))
    near = [on_chip for _, on_chip in located]
    return Instruction(name, kind.strip(), [array for array, _ in located], near, operands, call)


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


def _located(text: str) -> Iterator[tuple[Array, bool]]:
    """The arrays of a type, each with whether it lies on the cores."""
    for dtype, extents, layout in _ARRAY.findall(text):
        if dtype in _BYTES:
            yield (dtype, tuple(int(n) for n in extents.split(",") if n)), bool(_ON_CHIP.search(layout))


def arrays(text: str) -> list[Array]:
    """The arrays that a text names."""
    return [array for array, _ in _located(text)]


def size(array: Array) -> float:
    """Bytes of an array."""
    return _BYTES[array[0]] * math.prod(array[1])


def called(text: str) -> list[str]:
    """Names of the computations that an instruction runs."""
    names = []
    for single, several in _CALLED.findall(text):
        names += [single] if single else [name.strip().lstrip("%") for name in several.split(",")]
    return names


def rounds(text: str, computations: Computations) -> float | None:
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
