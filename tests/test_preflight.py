"""Ahead-of-time compilation: targets, reading programs, and the real train step and sampler on eight devices."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments.common import load_config
from experiments.configs.slices import PRESETS
from omnidiff_jax.errors import UserError
from omnidiff_jax.preflight import compile as preflight
from omnidiff_jax.preflight import report
from omnidiff_jax.preflight.advice import Settings, advise, larger_slice
from omnidiff_jax.preflight.flops import matmul_flops
from omnidiff_jax.preflight.report import Report, _needed
from omnidiff_jax.preflight.table import record
from omnidiff_jax.preflight.targets import CHIPS, parse_target
from omnidiff_jax.preflight.traffic import carries_logits, read_program
from omnidiff_jax.runs.config import run_config
from omnidiff_jax.training.optimizer import OptimizerConfig

needs_eight = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


# ---- targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "devices", "granules"),
    [("v5p:4x4x4", 64, 1), ("v6e:8x8", 64, 1), ("v5e:16x16*2", 512, 2), ("h100:8x4", 32, 4), ("cpu:8", 8, 1)],
)
def test_targets(topology, devices, granules):
    target = parse_target(topology)
    assert (target.devices, target.granules, target.kind) == (devices, granules, topology.partition(":")[0])
    assert target.chip.memory > 0


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5q:4x4x4", "unknown kind of device in topology 'v5q'; did you mean 'v5p'"),
        ("v5p:4x4x5", "unknown topology 'v5p:4x4x5'; did you mean 'v5p:4x4x4'"),
        ("v5p:8x8", "unknown topology 'v5p:8x8'; did you mean 'v5p:4x4x4'"),
        ("v6e", "topology 'v6e' names no devices; write v6e:4x8"),
        ("h100:16", "a node has at most 8 GPUs; write h100:8xNODES"),
        ("cpu:2x2", "'cpu:2x2' is not a number of devices; write cpu:8"),
    ],
)
def test_unknown_targets(topology, message):
    with pytest.raises(UserError, match=message):
        parse_target(topology)


def test_presets_are_of_known_slices():
    for model, rows in PRESETS.items():
        for name in rows:
            target = parse_target(name)
            config = load_config(f"experiments/configs/{model}.py:{name}")
            sizes = {axis: size for axis, size in config.mesh.items() if axis != "dcn"}
            assert math.prod((*sizes.values(), *config.mesh.dcn.values())) == target.devices, (model, name)
            assert config.slice == name and target.kind in CHIPS
    with pytest.raises(UserError, match="unknown slice of dream7b 'v5p:4x4x5'; did you mean 'v5p:4x4x4'"):
        load_config("experiments/configs/dream7b.py:v5p:4x4x5")


def test_the_next_larger_slice():
    assert larger_slice(parse_target("v5p:4x4x4")) == "v5p:4x4x8"
    assert larger_slice(parse_target("h100:8")) == ""


# ---- reading programs -------------------------------------------------------------------------------------

PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[64,32]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %sum = f32[64,32]{1,0:T(8,128)} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) tuple(%i, %sum)
}

%condition (q: (s32[], f32[64,32])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  %q = (s32[]{:T(128)}, f32[64,32]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[8,1000]) -> f32[64,1000] {
  %a = f32[8,1000]{1,0} parameter(0)
  %logits = f32[64,1000]{1,0} all-gather(%a), replica_groups=[1,8]<=[8], dimensions={0}
  %head = bf16[32,1000]{1,0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %pairs = f32[8,10]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %tuple = (s32[], f32[64,32]{1,0}) tuple(%a, %a)
  %loop = (s32[], f32[64,32]{1,0}) while(%tuple), condition=%condition, body=%body
  ROOT %copy = f32[64,1000]{1,0} copy(%logits)
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    traffic = read_program(PROGRAM, [0, 0, 0, 0, 1, 1, 1, 1], trips=(5,))
    rows = {(c.kind, c.shape): c for c in traffic.collectives}
    sums = rows["all-reduce", "f32[64,32]"]
    assert (sums.count, sums.group, sums.crosses) == (28, 4, True)
    assert sums.bytes == 28 * 2 * 3 / 4 * 64 * 32 * 4
    logits, head = rows["all-gather", "f32[64,1000]"], rows["all-gather", "bf16[32,1000]"]
    assert (logits.group, logits.bytes, logits.crosses) == (8, 7 / 8 * 64000 * 4, True)
    assert (head.group, head.bytes, head.crosses) == (4, 3 / 4 * 64000, False)
    assert rows["collective-permute", "f32[8,10]"].bytes == 320
    assert traffic.unknown_loops == 0
    # An all-gather reads 8x1000 and writes the whole; the copy reads and writes it.
    assert traffic.bytes > 4 * 64000 * 3


def test_logits_between_devices_are_noticed():
    """1000 words, width 32: the gathered head is a parameter, 64 rows of logits are not."""
    collectives = read_program(PROGRAM, [0] * 8, trips=(1,)).collectives
    assert [c.shape for c in carries_logits(collectives, 1000, 32, (8,))] == ["f32[64,1000]"]
    assert carries_logits(collectives, 1001, 32, (8,)) == ()


TPU_PROGRAM = """HloModule jit_step

%all-reduce-scatter.1 (input: bf16[64,96]) -> bf16[16,96] {
  %input = bf16[64,96]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[64,96]{1,0} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = bf16[16,96]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={16,96}
}

ENTRY %main (a: bf16[16,96]) -> bf16[16,96] {
  %a = bf16[16,96]{1,0} parameter(0)
  %kernel = (f32[8,8]{1,0}, bf16[64,96]{1,0}) custom-call(%a), frontend_attributes={kernel_metadata={
"name": "splash"
}}, metadata={op_name="jit(step)/pallas_call"}
  %whole = bf16[64,96]{1,0} all-gather(%a), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
  %fused = bf16[16,96]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %kept = bf16[16,96]{1,0} all-reduce(%fused), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}
}
"""


def test_programs_as_libtpu_writes_them():
    """Attributes of kernels that run over lines and begin with braces, reduce-scatters as fusions, permuted meshes."""
    traffic = read_program(TPU_PROGRAM, [0, 0, 0, 0, 1, 1, 1, 1], trips=(1,))
    rows = {(c.kind, c.shape): c for c in traffic.collectives}
    assert len(rows) == 3
    gathered, scattered = rows["all-gather", "bf16[64,96]"], rows["reduce-scatter", "bf16[16,96]"]
    summed = rows["all-reduce", "bf16[16,96]"]
    # Devices in the mesh's order are 0 4 1 5 2 6 3 7: axis a holds 0 1 2 3, axis b pairs 0 with 4.
    assert (gathered.group, gathered.crosses, gathered.bytes) == (4, False, 3 / 4 * 64 * 96 * 2)
    assert (scattered.group, scattered.crosses, scattered.bytes) == (4, False, 3 / 4 * 64 * 96 * 2)
    assert (summed.group, summed.crosses, summed.bytes) == (2, True, 16 * 96 * 2)
    assert traffic.bytes > 2 * 64 * 96, "what follows the kernel is read too"
    with pytest.raises(ValueError, match="unknown notation"):
        read_program(TPU_PROGRAM.replace("device_ids=([2,4]T(1,0))", "device_ids=(3,4)"), [0] * 8, trips=(1,))


CUT_PROGRAM = """HloModule jit_step

ENTRY %main (a: f32[64,96]) -> f32[16,96] {
  %a = f32[64,96]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %sum = f32[64,96]{1,0} all-reduce(%a), replica_groups=[1,4]<=[4], to_apply=%add
  %one = f32[16,96]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,96}
  ROOT %two = f32[16,96]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,96}
}
"""


def test_a_sum_that_is_only_cut_is_scattered_where_each_device_keeps_its_part():
    (scattered,) = read_program(CUT_PROGRAM, [0] * 4, trips=(1,), cut=True).collectives
    assert (scattered.kind, scattered.shape, scattered.bytes) == ("reduce-scatter", "f32[16,96]", 3 / 4 * 64 * 96 * 4)
    (optimised,) = read_program(CUT_PROGRAM, [0] * 4, trips=(1,)).collectives
    assert (optimised.kind, optimised.bytes) == ("all-reduce", 2 * 3 / 4 * 64 * 96 * 4)
    # Among two devices, a quarter is the part of another axis.
    halves = CUT_PROGRAM.replace("[1,4]<=[4]", "[2,2]<=[4]")
    (whole,) = read_program(halves, [0] * 4, trips=(1,), cut=True).collectives
    assert (whole.kind, whole.bytes) == ("all-reduce", 64 * 96 * 4)


MEMORY_PROGRAM = """HloModule jit_step

%inner (p: f32[28,64], i: s32[]) -> f32[64] {
  %p = f32[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %cut = f32[1,64]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0} bitcast(%cut)
}

%outer (stack: f32[28,64], at: s32[], sums: f32[28,64]) -> f32[28,64] {
  %stack = f32[28,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %sums = f32[28,64]{1,0} parameter(2)
  %row = f32[64]{0} fusion(%stack, %at), kind=kLoop, calls=%inner
  %update = f32[1,64]{1,0} bitcast(%row)
  ROOT %put = f32[28,64]{1,0} dynamic-update-slice(%sums, %update, %at, %at)
}

ENTRY %main (a: f32[28,64], n: s32[], b: f32[28,64]) -> f32[28,64] {
  %a = f32[28,64]{1,0:T(8,128)} parameter(0)
  %n = s32[] parameter(1)
  %b = f32[28,64]{1,0:T(8,128)} parameter(2)
  %near = (f32[28,64]{1,0:T(8,128)S(1)}, f32[28,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %here = f32[28,64]{1,0:T(8,128)S(1)} copy-done(%near)
  %twice = f32[28,64]{1,0:T(8,128)S(1)} add(%here, %here)
  %ahead = (f32[28,64]{1,0:T(8,128)}, f32[2,64]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:2], [0:64]}
  %rows = f32[2,64]{1,0:T(8,128)S(1)} slice-done(%ahead)
  ROOT %out = f32[28,64]{1,0:T(8,128)} fusion(%a, %n, %b), kind=kLoop, calls=%outer
}
"""


def test_memory_traffic_is_of_slices_and_of_what_leaves_the_cores():
    """A copy to the cores reads once, a slice ahead of its use its part, work there is free; of stacked layers a fusion
    reads and writes one."""
    traffic = read_program(MEMORY_PROGRAM, [0], trips=(1,))
    copied, row, index = 28 * 64 * 4, 64 * 4, 4
    # The index is counted as memory, the update read too.
    assert traffic.bytes == copied + 2 * row + (row + index + row + row)


LAID_ANEW_PROGRAM = """HloModule jit_step

%tiles (p: s8[28,8,64]) -> s8[28,8,64] {
  %p = s8[28,8,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %q = s8[28,8,64]{2,1,0:T(8,128)(4,1)} copy(%p)
}

%layer (stack: s8[28,8,64], i: s32[]) -> bf16[8,64] {
  %stack = s8[28,8,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  %laid = s8[28,8,64]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, calls=%tiles
  %wide = bf16[28,8,64]{2,1,0} convert(%laid)
  %one = bf16[1,8,64]{2,1,0} dynamic-slice(%wide, %i, %i, %i), dynamic_slice_sizes={1,8,64}
  ROOT %flat = bf16[8,64]{1,0} bitcast(%one)
}

ENTRY %main (a: s8[28,8,64], n: s32[]) -> bf16[8,64] {
  %a = s8[28,8,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %n = s32[]{:S(1)} parameter(1)
  %all = s8[28,8,64]{2,1,0:T(8,128)(4,1)} fusion(%a), kind=kLoop, calls=%tiles
  ROOT %out = bf16[8,64]{1,0:S(1)} fusion(%a, %n), kind=kLoop, calls=%layer
}
"""


def test_within_a_fusion_a_stack_is_laid_out_anew_where_it_is_read_only():
    """One layer of the stack in its own dtype; a fusion that does nothing else reads and writes all of it."""
    layer = 8 * 64
    assert read_program(LAID_ANEW_PROGRAM, [0], trips=(1,)).bytes == layer + 2 * 28 * layer


ROUNDS_PROGRAM = """HloModule jit_run

%rows (p: f32[100,8], i: s32[2]) -> f32[2,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[2]{0} parameter(1)
  ROOT %found = f32[2,8]{1,0} gather(%p, %i), offset_dims={1}
}

%small (a: f32[100,8]) -> f32[10,8] {
  %a = f32[100,8]{1,0} parameter(0)
  ROOT %part = f32[10,8]{1,0} slice(%a), slice={[0:10], [0:8]}
}

%large (a: f32[100,8]) -> f32[10,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %all = f32[100,8]{1,0} copy(%a)
  ROOT %part = f32[10,8]{1,0} slice(%all), slice={[0:10], [0:8]}
}

%chunk (q: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %q = (s32[], f32[100,8]{1,0}) parameter(0)
  %x = f32[100,8]{1,0} get-tuple-element(%q), index=1
  %more = f32[100,8]{1,0} copy(%x)
}

%until (p: (s32[], f32[100,8])) -> pred[] {
  %p = (s32[], f32[100,8]{1,0}) parameter(0)
}

%round (p: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %p = (s32[], f32[100,8]{1,0}) parameter(0)
  %i = s32[2]{0:S(1)} get-tuple-element(%p), index=0
  %x = f32[100,8]{1,0} get-tuple-element(%p), index=1
  %looked = f32[2,8]{1,0:S(1)} fusion(%x, %i), kind=kCustom, calls=%rows
  %two = f32[10,8]{1,0} conditional(%i, %x, %x), branch_computations={%large, %small}
  %three = f32[10,8]{1,0} conditional(%i, %x, %x), branch_computations={%small, %large, %small}
  %chunks = (s32[], f32[100,8]{1,0}) while(%p), condition=%until, body=%chunk
}

ENTRY %main (a: f32[100,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %laid = f32[100,8]{0,1} copy(%a)
  %loop = (s32[], f32[100,8]{1,0}) while(%laid), condition=%until, body=%round
}
"""


def test_a_round_of_the_sampler_is_counted_without_what_is_done_once():
    """Of looked-up rows and slices the part is read; one branch of a conditional runs; loops in loops have their own
    number of rounds."""
    whole, part, rows = 100 * 8 * 4, 10 * 8 * 4, 2 * 8 * 4
    branches = 2 * part + (2 * whole + 2 * part)
    once = read_program(ROUNDS_PROGRAM, [0], trips=(1.0, 3.0), rounds_only=True)
    assert once.bytes == rows + branches + 3 * 2 * whole
    everything = read_program(ROUNDS_PROGRAM, [0], trips=(2.0, 3.0))
    assert everything.bytes == 2 * whole + 2 * once.bytes and everything.unknown_loops == 2


def test_operations_count_loops_and_recomputation():
    def layer(x, w):
        return jnp.tanh(x @ w), None

    def forward(x, ws):
        return jax.lax.scan(jax.checkpoint(layer), x, ws)[0].sum()

    x, ws = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    one = 2 * 4 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(forward)(x, ws), (1,)) == 3 * one
    # Forward, again in the backward pass, and two products for the gradients.
    assert matmul_flops(jax.make_jaxpr(jax.grad(forward, argnums=(0, 1)))(x, ws), (1,)) == 3 * 4 * one

    def loop(x, w, n):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ w, x)

    assert matmul_flops(jax.make_jaxpr(loop)(x, ws[0], 7), (5.0,)) == 5 * one  # n is known at run time only


def test_the_compilers_refusal_is_understood():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded by 2.75G."
    assert _needed(text) == 18.5 * 2**30
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (21.83G) exceeds "
        "available HBM (15.75G)."
    )
    assert _needed(text) == 21.83 * 2**30
    assert _needed("INTERNAL: something else") == 0


# ---- the real programs ------------------------------------------------------------------------------------

SMALL = (
    "--config.model.width=64",
    "--config.model.layers=2",
    "--config.model.heads=4",
    "--config.model.kv_heads=2",
    "--config.model.head_dim=16",
    "--config.model.hidden=128",
    "--config.batch_size=8",
    "--config.data.length=256",
    "--config.data.frames=32",
    "--config.data.samples=4",
    "--config.loss.chunk=48",
    "--config.mesh.fsdp=4",
    "--config.mesh.tensor=2",
    "--config.sharding=fsdp_tensor",
)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """A program is compiled once, however large the device."""
    anew, found = report._compile, {}

    def remembered(lowered, target):
        key = lowered.as_text(), target.kind
        found[key] = found.get(key) or anew(lowered, target)
        return found[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "_compile", remembered)
        yield


def small(*others):
    return run_config(load_config("experiments/configs/dream7b.py", (*SMALL, *others)))


@needs_eight
def test_train_step_moves_no_logits(tmp_path):
    """The whole vocabulary of 176,264 over two devices, hidden rows over four."""
    result = preflight.preflight(small(), "cpu:8")
    assert result["fits"] and result["logits_collectives"] == []
    assert result["peak_bytes_per_device"] > result["argument_bytes_per_device"] > 0
    # Recomputed layers, but only half of the rows through the head.
    assert result["flops_per_device"] > 0.3 * result["useful_flops_per_device"]
    assert 0 < result["mfu_ceiling"] and result["step_seconds_estimate"] > 0
    wide = [c for c in result["collectives"] if "176264" in c["shape"]]
    assert not wide, "the vocabulary is split over `tensor`, so no array of all of it should move"
    text = preflight.render(result)
    assert "whole-vocabulary logits between devices: none" in text and "fits" in text
    json.dumps(result)

    table = tmp_path / "scaling.md"
    table.write_text("# Scaling\n\nText.\n")
    record(table, "dream7b", result)
    record(table, "dream7b", result)
    rows = [line for line in table.read_text().splitlines() if line.startswith("| dream7b")]
    assert len(rows) == 1 and "cpu:8" in rows[0] and "fsdp=4 tensor=2" in rows[0]


def test_what_does_not_fit_says_which_knobs_would_make_it_fit():
    gib = 1 << 30
    report = Report(
        fits=False, peak_bytes=20.0 * gib, device_bytes=16.0 * gib, argument_bytes=9.0 * gib, flops_per_device=1.0,
        useful_flops_per_device=1.0, bytes_accessed=None, collectives=None, logits=(), seconds={}, step_seconds=1.0,
        mfu_ceiling=1.0, compile_seconds=1.0,
    )  # fmt: skip
    settings = Settings(
        remat="dots", attention="xla", rows=2, accumulate=1, chunk=1024, vocabulary=1 << 17, width=4096,
        trainable=gib, dots=3.0 * gib, optimizer=OptimizerConfig(b2=0.95), sharding="fsdp",
    )  # fmt: skip
    target = parse_target("v5e:4x4")
    text = "\n".join(advise(report, settings, target))
    assert "moment_dtype = 'bfloat16': saves 2.0 GiB\n" in text, "less than the 4 GiB that are missing"
    assert "config.loss.chunk = 512: saves 0.5 GiB" in text
    assert "moments_on = 'host': saves 8.0 GiB, enough" in text
    assert "--topology=v5e:4x8: half the state on each device: saves 4.5 GiB, enough" in text
    for knob in ("config.model.attention", "config.model.remat = 'full'", "config.accumulate = 2", "fsdp_tensor"):
        assert knob in text
    fits = dataclasses.replace(report, fits=True, device_bytes=26.0 * gib)
    assert advise(fits, settings, target) == []
    full = dataclasses.replace(settings, remat="full")
    assert advise(fits, full, target) == ["config.model.remat = 'dots': no layer is computed twice, for about 3.0 GiB"]
    assert advise(dataclasses.replace(fits, device_bytes=25.0 * gib), full, target) == [], "a tenth stays free"


FSDP = ("--config.sharding=fsdp", "--config.mesh.tensor=1", "--config.mesh.data=2")


@needs_eight
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_fsdp_sends(accumulate):
    """Gradients of embedding and head are scattered, never whole; no device gets the rows of others.

    The program of GPUs, whose weights move in bfloat16, is read before it is made one for CPUs.
    """
    others = (f"--config.accumulate={accumulate}", f"--config.batch_size={8 * accumulate}", "--config.mesh.dcn.data=1")
    result = preflight.preflight(small(*FSDP, *others), "h100:8")
    sent = {(c["kind"], c["shape"]): c for c in result["collectives"]}
    scattered = sent["reduce-scatter", "f32[16,176264]"]
    assert (scattered["count"], scattered["group"]) == (accumulate, 4)
    assert scattered["bytes"] == accumulate * 3 / 4 * 64 * 176264 * 4
    assert sent["all-gather", "bf16[64,176264]"]["count"] == accumulate
    sums = [c for c in result["collectives"] if c["kind"] == "all-reduce" and "176264" in c["shape"]]
    assert {c["shape"] for c in sums} == {"f32[16,176264]", "f32[176264,16]"} and all(c["group"] == 2 for c in sums)
    rows = 256 * 64  # positions of one row times width
    activations = [c for c in result["collectives"] if "256," in c["shape"] and "all-to-all" not in c["kind"]]
    assert all(c["bytes"] < 8 * rows for c in activations), activations
    assert not [c for c in result["collectives"] if c["shape"].startswith(("f32[8,32,", "bf16[8,32,", "u32[8,32,"))]
    state, moved = result["argument_bytes_per_device"], result["bytes_accessed_per_device"]
    assert state < moved < 2 * state, "the state is read and written, the batch and the frozen encoder are read"
    # A layer's gradients: in pieces within fsdp first, then the pieces over data; never whole over all eight.
    pieces = {(c["kind"], c["group"]) for c in result["collectives"] if c["shape"] in ("bf16[16,128]", "bf16[128,16]")}
    assert pieces == {("reduce-scatter", 4), ("all-reduce", 2)}
    kernels = ("bf16[64,128]", "bf16[64,4,16]", "bf16[128,64]", "bf16[4,16,64]")
    sums = {(c["shape"], c["group"]) for c in result["collectives"] if c["kind"] == "all-reduce"}
    assert not sums & {(kernel, 8) for kernel in kernels}


@needs_eight
def test_a_device_too_small_is_said_to_be(monkeypatch):
    chip = dataclasses.replace(parse_target("cpu:8").chip, memory=float(1 << 20))
    monkeypatch.setattr(
        preflight, "parse_target", lambda topology: dataclasses.replace(parse_target(topology), chip=chip)
    )
    result = preflight.preflight(small(), "cpu:8")
    assert not result["fits"] and result["advice"] and "DOES NOT FIT" in preflight.render(result)


@needs_eight
def test_the_sampler_compiles():
    sampled = preflight.preflight(small(), "cpu:8", "sample")
    assert sampled["fits"] and sampled["what"] == "sample" and sampled["flops_per_device"] > 0


@needs_eight
def test_a_batch_that_the_mesh_does_not_divide():
    with pytest.raises(UserError, match=r"batch_size = 6 rows cannot be split over 4 devices .* multiple of 4"):
        preflight.preflight(small("--config.batch_size=6"), "cpu:8")
    with pytest.raises(UserError, match="does not use exactly the 8 devices"):
        preflight.preflight(small("--config.mesh.tensor=4"), "cpu:8")
