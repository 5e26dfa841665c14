"""The released sampler in plain PyTorch, with the operations of the released code: logits of the whole vocabulary at
every position, a sort for top-p, a Python loop over the tokens to penalise, penalties by boolean indexing, the most
likely token of every position noted at each step (twice, once with its probability), a loop that waits for the device.

Its key/value cache, which nothing reads, is left out, and logits are float32 from the head on where they stay in the
model's dtype: tokens are to be compared.

Run as a file of its own, by an interpreter that has torch: `python torch_sampler.py '{"weights": FOLDER, …}'`. For each
line {"prompt", "unconditional", "canvases"} on stdin it fills one answer and prints {"seconds", "tokens", "committed"},
the latter two after and of each step; `canvases`, where there are some, are the steps to take: [number, tokens of the
answer before it]. At the end of stdin it prints {"peak_bytes"}.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch_step import Model

FREE = 100  # masked rows before the position penalty begins


def load(spec) -> Model:
    """The model with the arrays of the folder `spec["weights"]`: FLAX_PATH.npy, layers stacked on the first axis."""

    def read(path, layer=None):
        array = np.load(Path(spec["weights"]) / f"{path}.npy", mmap_mode="r")
        array = np.array(array if layer is None else array[layer])
        if array.dtype.kind == "V":  # bfloat16, which numpy only knows by its two bytes
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    width = spec["width"]
    tensors = {"embed.weight": read("embedding"), "head.weight": read("head").T, "norm.weight": read("norm.scale")}
    for i in range(spec["layers"]):
        for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            tensors[f"layers.{i}.{name}.weight"] = read(f"layers.attention.{ours}.kernel", i).reshape(width, -1).T
            tensors[f"layers.{i}.{name}.bias"] = read(f"layers.attention.{ours}.bias", i).flatten()
        tensors[f"layers.{i}.o.weight"] = read("layers.attention.out.kernel", i).reshape(-1, width).T
        for name in ("gate", "up", "down"):
            tensors[f"layers.{i}.{name}.weight"] = read(f"layers.mlp.{name}.kernel", i).T
        for name, ours in (("norm1", "attention_norm"), ("norm2", "mlp_norm")):
            tensors[f"layers.{i}.{name}.weight"] = read(f"layers.{ours}.scale", i)
    with torch.device("meta"):
        model = Model(spec)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, assign=True)
    return model.to(spec["device"]).eval()


def logits_of(model, embeddings, rope):
    """[R, L, D] -> float32 [R, L, V]."""
    x = embeddings
    for layer in model.layers:
        x = layer(x, rope, None)
    return model.head(model.norm(x)).float()


def rope_of(spec, length, dtype):
    exponents = torch.arange(0, spec["head_dim"], 2) / spec["head_dim"]
    angles = torch.arange(length)[:, None] / spec["rope_theta"] ** exponents
    angles = torch.cat([angles] * 2, -1).to(spec["device"])
    return angles.cos().to(dtype), angles.sin().to(dtype)


def filtered(logits, top_p, top_k):
    lowest = torch.finfo(logits.dtype).min
    if top_p < 1:
        ordered, ids = logits.sort(descending=True)
        weights = ordered.softmax(-1)
        removed = weights.cumsum(-1) - weights > top_p  # what is above it suffices
        logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, ids, removed), lowest)
    if top_k:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, lowest)
    return logits


def repel(logits, factors):
    """Makes logits less likely, in place; `factors` has their shape."""
    logits[logits < 0] *= factors[logits < 0]
    logits[logits >= 0] /= factors[logits >= 0]


def decide(logits, answer, step, spec):
    """Candidates and confidences of the masked rows [n, V]; `answer` holds the tokens before this step."""
    logits = filtered(logits, spec["top_p"], spec["top_k"])
    if spec["repetition"] != 1 and step > 0:
        for token in set(answer.tolist()) - {0, spec["mask"]}:
            repel(logits[:, token], torch.full_like(logits[:, token], spec["repetition"]))
    rows = len(logits)
    if spec["position"] != 1 and rows > FREE:
        depth = (torch.arange(rows, device=logits.device) - FREE).clamp(0) / (rows - FREE)
        repel(logits, (1 + depth * (spec["position"] - 1))[:, None].repeat(1, logits.shape[-1]))
    probabilities = logits.softmax(-1)
    _, token = probabilities.max(-1)
    confidence = (probabilities * (probabilities + 1e-10).log()).sum(-1)
    return token, confidence


class Demo:
    """One request: the released loop around the model."""

    def __init__(self, model, spec, prompt, unconditional):
        self.model, self.spec, self.unconditional = model, spec, unconditional
        self.known = model.embed(torch.tensor(prompt, device=spec["device"]))
        self.rope = rope_of(spec, len(prompt) + spec["answer"], self.known.dtype)
        self.times = torch.linspace(1, 1e-3, spec["steps"] + 1)
        self.notes = []

    def step(self, answer, number):
        """Takes a step in `answer`; how many positions it chose."""
        spec, start = self.spec, len(self.known)
        masked = answer == spec["mask"]
        count = int(masked.sum())
        if count == 0:
            return 0
        fresh = self.model.embed(answer)
        rows = [torch.cat([self.known, fresh])]
        if self.unconditional:
            other = self.model.embed(torch.tensor(self.unconditional, device=spec["device"]))
            rows.append(torch.cat([other, fresh, torch.zeros_like(self.known[len(other) :])]))
        logits = logits_of(self.model, torch.stack(rows), self.rope)
        guided = logits[1] + (1 + spec["guidance"]) * (logits[0] - logits[1]) if self.unconditional else logits[0]
        logits = torch.cat([guided[:1], guided[:-1]])[start:]  # hidden state i predicts token i + 1
        token, confidence = decide(logits[masked], answer, number, spec)
        last = number == spec["steps"] - 1
        quota = count if last else max(int(count * (1 - self.times[number + 1] / self.times[number])), 1)
        # Where top-p leaves one token, confidences tie at 0: the earlier position, where `topk` takes any.
        chosen = confidence.sort(descending=True, stable=True).indices[:quota]
        answer[masked.nonzero()[chosen, 0]] = token[chosen]
        self.notes.append((guided.softmax(-1).max(-1), guided.max(-1).indices))
        return quota


@torch.no_grad()
def fill(model, spec, request):
    """The answer after each step, and how many positions each chose."""
    demo = Demo(model, spec, request["prompt"], request["unconditional"])
    canvases = request["canvases"] or [[number, None] for number in range(spec["steps"])]
    answer = torch.full((spec["answer"],), spec["mask"], device=spec["device"])
    answers, committed = [], []
    for number, before in canvases:
        answer = answer if before is None else torch.tensor(before, device=spec["device"])
        quota = demo.step(answer, number)
        if quota == 0:
            break
        answers.append(answer.tolist())
        committed.append(quota)
    return answers, committed


def main(spec) -> None:
    torch.set_num_threads(spec["threads"])
    model = load(spec)
    print(json.dumps({"ready": f"torch {torch.__version__} on {spec['device']}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        tokens, committed = fill(model, spec, request)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "tokens": tokens, "committed": committed}), flush=True)
    on_device = spec["device"] == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
