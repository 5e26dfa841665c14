"""A small CLIP of random weights in transformers' form. `python tests/clip_toys.py` records what transformers says of
it (needs the extra `torch`)."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RECORDED = Path(__file__).parent / "golden" / "clip.npz"
_TOWER = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
WORDS = ("a", "red", "circle", "on", "white", "<|startoftext|>", "<|endoftext|>")
CONFIG = {
    "model_type": "clip",
    "projection_dim": 12,
    "text_config": {
        **_TOWER,
        "hidden_size": 16,
        "intermediate_size": 32,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 9,
        "eos_token_id": len(WORDS) - 1,
        "bos_token_id": len(WORDS) - 2,
        "pad_token_id": len(WORDS) - 1,
    },
    "vision_config": {**_TOWER, "hidden_size": 24, "intermediate_size": 40, "image_size": 32, "patch_size": 8},
}
TEXTS = ("a red circle", "white", "circle on white on white on white on red")


def shapes():
    """Name -> shape, of every tensor."""
    found = {"logit_scale": ()}
    for tower in ("text", "vision"):
        config = CONFIG[f"{tower}_config"]
        width, hidden = config["hidden_size"], config["intermediate_size"]
        for layer in range(config["num_hidden_layers"]):
            name = f"{tower}_model.encoder.layers.{layer}"
            kernels = {f"self_attn.{part}_proj": (width, width) for part in ("k", "v", "q", "out")}
            kernels |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
            for part, shape in kernels.items():
                found |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
            for norm in ("layer_norm1", "layer_norm2"):
                found |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
    text, vision, projection = CONFIG["text_config"], CONFIG["vision_config"], CONFIG["projection_dim"]
    norms = {"text_model.final_layer_norm": text, "vision_model.pre_layrnorm": vision}
    norms["vision_model.post_layernorm"] = vision
    for name, config in norms.items():
        found |= {f"{name}.{part}": (config["hidden_size"],) for part in ("weight", "bias")}
    patch, width = vision["patch_size"], vision["hidden_size"]
    return found | {
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], text["hidden_size"]),
        "text_model.embeddings.position_embedding.weight": (text["max_position_embeddings"], text["hidden_size"]),
        "text_projection.weight": (projection, text["hidden_size"]),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2 + 1, width),
        "visual_projection.weight": (projection, width),
    }


def tensors(seed=0):
    """Random weights, the norms' around 1 and 0."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes().items()):
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        found[name] = np.asarray(centre + 0.3 * rng.standard_normal(shape), np.float32)
    return found


def write_folder(folder, seed=0):
    """A folder as `openai/clip-vit-*` has it, with words for ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    ids = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = WORDS[-2:]
    words.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    words.save(str(folder / "tokenizer.json"))
    return folder


def pictures():
    """uint8, one upright and one across."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, size, np.uint8) for size in ((47, 32, 3), (40, 91, 3))]


def by_transformers(folder, pixels, ids):
    """Vectors of length 1 of prepared pictures [B, S, S, 3] and ids [B, L], by transformers' CLIPModel."""
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        seen = model(
            input_ids=torch.from_numpy(np.asarray(ids)).long(),
            pixel_values=torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))),
        )
    return seen.image_embeds.numpy(), seen.text_embeds.numpy()


def by_their_processor(pictures_, size):
    """Pictures prepared by transformers' CLIPImageProcessor, float32 [B, S, S, 3]."""
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    found = [processor(picture, return_tensors="np")["pixel_values"][0] for picture in pictures_]
    return np.moveaxis(np.stack(found), 1, -1)


def padded(judge):
    """Ids of TEXTS as the judge reads them, int [B, L]."""
    rows = [judge._words.encode(text).ids for text in TEXTS]
    return np.array([row + row[-1:] * (judge.config.tokens - len(row)) for row in rows])


def record(folder):
    from omnidiff_jax.evaluation.judges.clip import ClipJudge

    judge = ClipJudge(write_folder(folder))
    pixels = by_their_processor(pictures(), judge.config.image_size)
    seen, said = by_transformers(folder, pixels, padded(judge)[: len(pixels)])
    rest = by_transformers(folder, pixels[:1], padded(judge)[len(pixels) :])[1]
    return {"pixels": pixels, "pictures": seen, "texts": np.concatenate([said, rest])}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        np.savez_compressed(RECORDED, **record(Path(place) / "clip"))
