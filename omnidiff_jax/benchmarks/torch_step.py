"""The released model's training arithmetic in plain PyTorch: Qwen2 without a causal mask, cross-entropy over the whole
vocabulary at every position, AdamW.

Run as a file of its own, by an interpreter that has torch: `python torch_step.py '{"width": …}'`. For each line on
stdin it does one step and prints {"seconds", "loss"}; at the end of stdin it prints {"peak_bytes"}.
"""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float = 1e-6):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * y.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        width, heads, kv, dim, hidden = (spec[k] for k in ("width", "heads", "kv_heads", "head_dim", "hidden"))
        self.heads, self.kv, self.dim = heads, kv, dim
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, n * dim) for n in (heads, kv, kv))
        self.o = nn.Linear(heads * dim, width, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, rope, mask):
        b, n, _ = x.shape
        y = self.norm1(x)
        q = rotate(self.q(y).view(b, n, self.heads, self.dim).transpose(1, 2), rope)
        k = rotate(self.k(y).view(b, n, self.kv, self.dim).transpose(1, 2), rope)
        v = self.v(y).view(b, n, self.kv, self.dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x, rope):
    cos, sin = rope
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Model(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.embed = nn.Embedding(spec["vocab_size"], spec["width"])
        self.layers = nn.ModuleList([Layer(spec) for _ in range(spec["layers"])])
        self.norm = RMSNorm(spec["width"])
        self.head = nn.Linear(spec["width"], spec["vocab_size"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, rope, mask):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, rope, mask)
        return self.head(self.norm(x))


def main(spec) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(spec["threads"])
    model = Model(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
    rows, length = spec["rows"], spec["length"]
    segments = torch.tensor(spec["segments"])
    positions = torch.tensor(spec["positions"])
    tokens = torch.randint(0, spec["vocab_size"], (rows, length))
    labels = torch.where(torch.rand(rows, length) < spec["masked"], tokens, -100)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & (segments > 0)[:, None, None, :]
    mask |= torch.eye(length, dtype=torch.bool)  # padding sees itself: a softmax over nothing is not a number
    frequency = spec["rope_theta"] ** (-torch.arange(0, spec["head_dim"], 2) / spec["head_dim"])
    angles = torch.cat([positions[..., None] * frequency] * 2, -1)[:, None]
    rope = angles.cos(), angles.sin()
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        logits = model(tokens, rope, mask).float()  # alive until the step ends, as the released model returns them
        shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
        loss = F.cross_entropy(logits.view(-1, spec["vocab_size"]), shifted.view(-1), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss.item()}), flush=True)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
