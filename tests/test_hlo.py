"""Parsing of compiled programs: what stands on a line, where its arrays lie, how often a loop runs."""

import pytest

from omnidiff_jax.preflight import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  ROOT %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
}

%below (q: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[] constant(28)
  %q = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.1 (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %near = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %away = bf16[4,8]{1,0:S(5)} copy(%a)
  %kernel = f32[2]{0} custom-call(%a, /*index=1*/%away), frontend_attributes={kernel_metadata={
"name": "splash {"
}}, metadata={op_name="pallas_call"}
  %loop = (s32[], bf16[4,8]{1,0}) while(%near), condition=%below, body=%body
  %known = (s32[], bf16[4,8]{1,0}) while(%near), condition=%body, body=%body, config={"known_trip_count":{"n":"7"}}
  %either = bf16[4,8]{1,0} conditional(%a, %a, %a), branch_computations={%body, %below}
  ROOT %last = bf16[4,8]{1,0} copy(%a)
}, execution_thread="main"
"""


@pytest.fixture(scope="module")
def program():
    return hlo.parse(PROGRAM)


def test_computations_end_where_they_end(program):
    """Not at a kernel's attributes that begin a line with braces."""
    computations, entry = program
    assert entry == "main.1" and list(computations) == ["body", "below", "main.1"]
    names = [instruction.name for instruction in computations[entry]]
    assert names == ["a", "near", "away", "kernel", "loop", "known", "either", "last"]


def test_an_instruction_knows_its_arrays_and_where_they_lie(program):
    table = {instruction.name: instruction for instruction in program[0]["main.1"]}
    near = table["near"]
    assert near.kind == "copy-start" and near.operands == ["a"]
    assert near.arrays == [("bf16", (4, 8)), ("bf16", (4, 8)), ("u32", ())]
    assert near.on_chip == [True, False, True]
    assert (near.bytes, near.memory_bytes) == (64 + 64 + 4, 64)
    assert table["away"].on_chip == [False], "memory space 5 is the host's, reached through the device's own"
    assert table["kernel"].operands == ["a", "away"] and table["kernel"].arrays == [("f32", (2,))]


def test_loops_say_how_often_they_run(program):
    computations, entry = program
    table = {instruction.name: instruction for instruction in computations[entry]}
    assert hlo.rounds(table["loop"].text, computations) == 28
    assert hlo.rounds(table["known"].text, computations) == 7
    assert hlo.rounds("while(%x), condition=%body, body=%body", computations) is None
    assert hlo.called(table["loop"].text) == ["below", "body"]
    assert hlo.called(table["either"].text) == ["body", "below"]


def test_sizes():
    assert hlo.arrays("2*bf16[3584,18944] f32[512] s4[3] token[]") == [
        ("bf16", (3584, 18944)), ("f32", (512,)), ("s4", (3,)),
    ]  # fmt: skip
    sizes = [hlo.size(array) for array in (("bf16", (2, 3)), ("pred", (5,)), ("s4", (3,)), ("f32", ()))]
    assert sizes == [12, 5, 1.5, 4]
