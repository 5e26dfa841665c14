"""A plain twin of the sampler: one example, Python loops, sorts, float64, no chunks and no batch. Only tests use it.

Written from the rules, not from the library; random numbers are the library's streams, drawn one position at a time.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from omnidiff_jax import rng
from omnidiff_jax.sampling import Canvas, ReleasedCandidates, SamplerConfig

# tokens int [L] -> logits [L, V] of the hidden state at each index (before alignment).
Logits = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Example:
    """One row of a canvas; `allowed` is bool [L, V]."""

    tokens: np.ndarray
    generate: np.ndarray
    start: int
    length: int
    allowed: np.ndarray
    number: int = 0


def row_of(canvas: Canvas, b: int, size: int) -> Example:
    """Row `b` of a canvas over a vocabulary of `size` ids."""
    n = int(np.asarray(canvas.inputs.segment_ids)[b].sum())
    free = canvas.allowed is None
    return Example(
        tokens=np.array(canvas.inputs.tokens[b, :n]),
        generate=np.array(canvas.generate[b, :n]),
        start=int(canvas.answer_start[b]),
        length=int(canvas.answer_length[b]),
        allowed=np.ones((n, size), bool) if free else np.asarray(canvas.allowed)[np.asarray(canvas.groups[b, :n])],
        number=int(canvas.example_ids[b]),
    )


@dataclasses.dataclass
class Trace:
    tokens: np.ndarray
    commit_step: np.ndarray
    confidence: np.ndarray
    committed: list[int]


def linspace(schedule, steps):
    """float32 steps of torch.linspace: a rounded step, counted from the nearer end, fused multiply-add."""
    if schedule.kind == "cosine":
        angles = [math.pi / 2 * i / steps for i in range(steps + 1)]
        return [np.float32(schedule.eps + (1 - schedule.eps) * math.cos(a)) for a in angles]
    step = float((np.float32(schedule.eps) - np.float32(1)) / np.float32(steps))
    points = []
    for i in range(steps + 1):
        from_end = i >= (steps + 1) // 2
        exact = float(np.float32(schedule.eps)) - step * (steps - i) if from_end else 1.0 + step * i
        points.append(np.float32(exact))
    return points


def blocks_of(config, example):
    """[(first, last, steps)] in answer coordinates."""
    flags = [bool(example.generate[example.start + j]) for j in range(example.length)]
    masks, size = sum(flags), config.blocks.size or example.length
    released = config.blocks.form == "released"
    cap = example.length if released else masks
    if config.steps is None:
        total = min(max(round(config.steps_per_token * cap), 1), cap)
    else:
        total = min(config.steps, cap)
    if released:
        found = []
        for b in range(math.ceil(masks / size)):
            last = min((b + 1) * size, example.length)
            share = np.float32(last - b * size) / np.float32(example.length) * np.float32(total)
            found.append((b * size, last, int(share)))
        return found
    found, before = [], 0
    for first in range(0, example.length, size):
        last = min(first + size, example.length)
        inside = sum(flags[first:last])
        if inside:
            share = total * (before + inside) // masks - total * before // masks
            found.append((first, last, max(share, 1)))
        before += inside
    return found


def filtered(logits, filters):
    """{id: logit} of one row; ids keep their order of likelihood."""
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    scaled = {v: logits[v] / filters.temperature if filters.temperature else logits[v] for v in order}
    top = max(scaled.values())
    weight = {v: math.exp(x - top) for v, x in scaled.items()}
    whole, kept, mass = sum(weight.values()), [], 0.0
    for v in order:
        if filters.top_p < 1 and mass / whole > filters.top_p:
            break
        kept.append(v)
        mass += weight[v]
    if filters.top_k:
        kept = kept[: filters.top_k]
    return {v: scaled[v] for v in kept}


def repelled(x, factor):
    return x * factor if x < 0 else x / factor


def confidence_of(row, token, kind):
    top = max(row.values())
    weights = {v: math.exp(x - top) for v, x in row.items()}
    total = sum(weights.values())
    probabilities = sorted((w / total for w in weights.values()), reverse=True)
    if kind == "entropy":
        return sum(p * math.log(p) for p in probabilities if p > 0)
    if kind == "topk_margin":
        return probabilities[0] - (probabilities[1] if len(probabilities) > 1 else 0.0)
    return weights[token] / total


def divergence(now, before):
    """KL(now || before), nats, of two dicts {id: probability}."""
    return sum(p * (math.log(p + 1e-12) - math.log(before[v] + 1e-12)) for v, p in now.items())


def softmax(row):
    """{id: probability} of {id: logit}."""
    top = max(row.values())
    total = sum(math.exp(x - top) for x in row.values())
    return {v: math.exp(x - top) / total for v, x in row.items()}


def revealed(config, decided, quota, history, spreads=()):
    """Positions that a step reveals, of `decided` {p: (token, confidence, order)}; `history` has those of all steps,
    `spreads` their distributions {p: {id: probability}} before filters."""
    ranked, reveal = sorted(decided, key=lambda p: (-decided[p][2], p)), config.reveal
    most = reveal.most or len(ranked)

    def share(confidence):
        return math.exp(confidence) if config.confidence.kind == "entropy" else confidence

    def calm(p):
        looks = [step.get(p) for step in history[-reveal.during - 1 :]]
        return len(looks) > reveal.during and all(
            one and other and one[0] == other[0] and abs(share(one[1]) - share(other[1])) <= reveal.change
            for one, other in zip(looks, looks[1:], strict=False)
        )

    def still(p):
        looks = [step.get(p) for step in spreads[-reveal.during - 1 :]]
        pairs = zip(looks, looks[1:], strict=False)
        return len(looks) > reveal.during and all(
            one and other and divergence(other, one) < reveal.drift for one, other in pairs
        )

    waits = {"stable": calm, "klass": still}.get(reveal.kind, lambda p: True)
    if reveal.kind == "schedule":
        return ranked[:quota]
    if reveal.kind == "entropy_bound":
        for n in range(len(ranked), 0, -1):
            entropies = [max(-decided[p][1], 0.0) for p in ranked[:n]]
            if sum(entropies) - max(entropies) <= reveal.gamma:
                return ranked[: max(min(n, most), quota)]
    sure = [p for p in ranked if share(decided[p][1]) > reveal.least and waits(p)]
    return [p for p in ranked if p in ranked[:quota] or p in sure[:most]]


def doubted(config, looked, tokens):
    """Positions that are masked again, of `looked` {p: (token, confidence, order)}."""
    for p, (token, confidence, _) in looked.items():
        sure = math.exp(confidence) if config.confidence.kind == "entropy" else confidence
        if (sure if token == tokens[p] else min(sure, 1 - sure)) < config.reveal.keep:
            yield p


def reference_sample(
    logits: Logits,
    example: Example,
    config: SamplerConfig,
    seed: int,
    mask_id: int,
    offset: int,
    unconditional: tuple[Logits, Example] | None = None,
    judge: Callable[[np.ndarray, int, int], np.ndarray] | None = None,
) -> Trace:
    """Fills one canvas row; `offset` is 1 for shifted logits, 0 for same-position ones.

    `judge` (tokens, first, last) gives the logits that written tokens of that block are judged by; None = `logits`.
    """
    key = rng.stream(seed, "sampling")
    tokens = example.tokens.copy()
    trace = Trace(tokens, np.full(len(tokens), -1), np.zeros(len(tokens), np.float32), [])
    plan, history, spreads, again, column, step = [], [], [], dict.fromkeys(range(len(tokens)), 0), 0, -1
    for first, last, steps in blocks_of(config, example):
        t = linspace(config.schedule, steps) if steps else []
        for i in range(steps):
            share = np.float32(1) if i == steps - 1 else np.float32(1) - t[i + 1] / t[i]
            plan.append((share, example.start + first, example.start + last))
    while column < len(plan):
        share, first, last = plan[column]
        masked = [p for p in range(len(tokens)) if example.generate[p] and tokens[p] == mask_id]
        if not masked:
            break
        step += 1
        inside = [p for p in range(first, last) if example.generate[p]]
        written = [p for p in inside if p not in masked and again[p] < config.reveal.times]
        if config.reveal.kind != "revise" or share == 1 or not set(inside) & set(masked):
            written = []
        rows = logits(tokens)
        if judge is not None and written:
            judged = judge(tokens, first, last)
        if unconditional is not None:
            other_logits, other = unconditional
            copy = other.tokens.copy()
            for j in range(example.length):
                if other.generate[other.start + j]:
                    copy[other.start + j] = tokens[example.start + j]
            other_rows, moved = other_logits(copy), other.start - example.start
            if judge is not None and written:
                other_judged = judge(copy, first + moved, last + moved)
        before = {int(v) for v in tokens[example.start : example.start + example.length]} - {0, mask_id}
        made = {int(tokens[p]) for p in range(len(tokens)) if example.generate[p]} - {mask_id}
        seen = made if config.repetition.scope == "generated" else before if step else set()
        decided, spread = {}, {}
        for p in masked + written:
            if not first <= p < last:
                continue
            hidden = judge is not None and p in written
            row = (judged if hidden else rows)[max(p - offset, 0)].astype(np.float64)
            if unconditional is not None:
                moved = p - example.start + other.start if config.guidance.form == "aligned" else p
                base = (other_judged if hidden else other_rows)[max(moved - offset, 0)].astype(np.float64)
                row = base + (1 + config.guidance.scale) * (row - base)
            ids = [
                v
                for v in range(len(row))
                if example.allowed[p, v] and (v != mask_id or isinstance(config.candidates, ReleasedCandidates))
            ]
            spread[p] = softmax({v: row[v] for v in ids})
            kept = filtered(np.array([row[v] for v in ids]), config.filters)
            kept = {ids[i]: x for i, x in kept.items()}
            kept = {v: repelled(x, config.repetition.penalty) if v in seen else x for v, x in kept.items()}
            if config.position.form == "released":
                i, n, free = masked.index(p), len(masked), config.position.free
                if i >= free and n > free:
                    factor = 1 + (i - free) / (n - free) * (config.position.maximum - 1)
                    kept = {v: repelled(x, factor) for v, x in kept.items()}
            elif config.position.form == "paper" and column / len(plan) < config.position.early:
                j, free = p - example.start, config.position.free
                if j >= free:
                    factor = 1 - (1 - config.position.gamma) * (j - free + 1) / (example.length - free)
                    kept = {v: x * factor for v, x in kept.items()}
            token = max(kept, key=lambda v: kept[v])
            if config.filters.temperature:
                row_key = _fold(rng.named(key, "tokens"), example.number, step, p)
                by_rank = 0 < config.filters.top_k < len(row)
                noise = np.asarray(jax.random.gumbel(row_key, (config.filters.top_k if by_rank else len(row),)))
                columns = {v: i if by_rank else v for i, v in enumerate(kept)}
                token = max(kept, key=lambda v: kept[v] + noise[columns[v]])
            sure = confidence_of(kept, token, config.confidence.kind)
            order = sure
            if config.confidence.kind == "origin" or config.confidence.temperature:
                u = float(jax.random.uniform(_fold(rng.named(key, "order"), example.number, step, p)))
                fade = 1 - column / len(plan) if config.confidence.anneal == "linear" else 1.0
                order = u
                if config.confidence.kind != "origin":
                    order = sure - config.confidence.temperature * fade * math.log(-math.log(max(u, 1e-38)))
            decided[p] = (token, sure, order)
        looked = {p: decided.pop(p) for p in written}
        count = len(decided)
        quota = min(max(int(np.float32(count) * share), 1), count)
        history.append(dict(decided))
        spreads.append(spread)
        chosen = revealed(config, decided, quota, history, spreads)
        trace.committed.append(len(chosen))
        for p in list(doubted(config, looked, tokens)):
            tokens[p], trace.commit_step[p], trace.confidence[p] = mask_id, -1, 0.0
            again[p] += 1
            masked = sorted([*masked, p])
        for p in chosen:
            if decided[p][0] != mask_id:
                tokens[p], trace.commit_step[p], trace.confidence[p] = decided[p][0], step, decided[p][1]
        end, left = config.stopping.end_id, [p for p in masked if tokens[p] == mask_id]
        if end is not None and any(example.generate[p] and tokens[p] == end for p in range(left[0] if left else 0)):
            for p in left:
                tokens[p], trace.commit_step[p] = end, step
                trace.confidence[p] = (decided | looked)[p][1] if p in decided | looked else 0.0
        column += 1
        while config.reveal.kind != "schedule" and column < len(plan):
            if any(example.generate[p] and tokens[p] == mask_id for p in range(*plan[column][1:])):
                break
            column += 1
    return trace


def _fold(key, *numbers):
    for number in numbers:
        key = jax.random.fold_in(key, np.uint32(number))
    return key
