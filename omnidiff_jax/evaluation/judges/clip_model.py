"""CLIP (arXiv 2103.00020) in Flax: pictures and texts to vectors of one space, by weights of transformers' form."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from omnidiff_jax.config import Count, Natural, choose
from omnidiff_jax.errors import UserError

_EPSILON = 1e-5
# Released CLIP's sigmoid form of GELU, and the exact one of some others.
ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A transformer of CLIP.

    Attributes:
        width, hidden, layers, heads: sizes.
        activation: a key of `ACTIVATIONS`.
    """

    width: Count = 512
    hidden: Count = 2048
    layers: Count = 12
    heads: Count = 8
    activation: str = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The model; the defaults are ViT-B/32.

    Attributes:
        text, vision: towers.
        vocab_size, tokens: of texts: ids, and the longest text.
        end: id at which a text's vector is read; 2 = at the largest id, as the first releases have it.
        image_size, patch: side of a picture and of its patches, in pixels.
        projection: length of the vectors.
    """

    text: TowerConfig = TowerConfig()
    vision: TowerConfig = TowerConfig(768, 3072, 12, 12)
    vocab_size: Count = 49408
    tokens: Count = 77
    end: Natural = 2
    image_size: Count = 224
    patch: Count = 32
    projection: Count = 512

    @classmethod
    def of_json(cls, content: Any, where: str) -> "ClipConfig":
        """The config of transformers' `config.json`; what it leaves out is ViT-B/32's, as there.

        Raises:
            UserError: it is of another kind of model, or is no config.
        """
        if not isinstance(content, Mapping):
            raise UserError(f"{where} is no config of a model; copy the whole folder again")
        try:
            return cls._of_mapping(content, where)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} is no config of CLIP ({error}); copy the whole folder again") from error

    @classmethod
    def _of_mapping(cls, content: Mapping[str, Any], where: str) -> "ClipConfig":
        if content.get("model_type", "clip") != "clip":
            raise UserError(f"{where}: model_type is {content.get('model_type')!r}, a judge of pictures must be clip")
        base = cls()
        text, vision = (dict(content.get(name) or {}) for name in ("text_config", "vision_config"))
        return cls(
            _tower(text, base.text, where),
            _tower(vision, base.vision, where),
            int(text.get("vocab_size", base.vocab_size)),
            int(text.get("max_position_embeddings", base.tokens)),
            int(text.get("eos_token_id", 49407)),
            int(vision.get("image_size", base.image_size)),
            int(vision.get("patch_size", base.patch)),
            int(content.get("projection_dim", base.projection)),
        )


def _tower(content: Mapping[str, Any], base: TowerConfig, where: str) -> TowerConfig:
    activation = str(content.get("hidden_act", base.activation))
    choose(ACTIVATIONS, activation, f"activation in {where}")
    return TowerConfig(
        int(content.get("hidden_size", base.width)),
        int(content.get("intermediate_size", base.hidden)),
        int(content.get("num_hidden_layers", base.layers)),
        int(content.get("num_attention_heads", base.heads)),
        activation,
    )


class Tower(nn.Module):
    """Pre-norm transformer, float32."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array, causal: bool) -> jax.Array:
        """float32 [B, L, D] -> the same; `causal` lets a position see none after it."""
        config = self.config
        length = x.shape[1]
        seen = jnp.tril(jnp.ones((length, length), bool)) if causal else jnp.ones((length, length), bool)
        for layer in range(config.layers):
            name = f"layers.{layer}"
            y = nn.LayerNorm(_EPSILON, name=f"{name}.layer_norm1")(x)
            x = x + self._attend(y, seen, f"{name}.self_attn")
            y = nn.LayerNorm(_EPSILON, name=f"{name}.layer_norm2")(x)
            y = ACTIVATIONS[config.activation](nn.Dense(config.hidden, name=f"{name}.mlp.fc1")(y))
            x = x + nn.Dense(config.width, name=f"{name}.mlp.fc2")(y)
        return x

    def _attend(self, x: jax.Array, seen: jax.Array, name: str) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], config.heads, config.width // config.heads)
        q, k, v = (nn.Dense(config.width, name=f"{name}.{part}_proj")(x).reshape(heads) for part in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(heads[-1]).astype(np.float32)
        shares = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)
        return nn.Dense(config.width, name=f"{name}.out_proj")(mixed)


class Clip(nn.Module):
    """Both towers."""

    config: ClipConfig

    def setup(self) -> None:
        config, text, vision = self.config, self.config.text, self.config.vision
        self.token_embedding = nn.Embed(config.vocab_size, text.width)
        self.text_positions = nn.Embed(config.tokens, text.width)
        self.text_tower, self.text_norm = Tower(text), nn.LayerNorm(_EPSILON)
        self.text_projection = nn.Dense(config.projection, use_bias=False)
        patches = (config.image_size // config.patch) ** 2
        self.patches = nn.Conv(
            vision.width, (config.patch, config.patch), (config.patch, config.patch), "VALID", use_bias=False
        )
        self.whole = self.param("whole", nn.initializers.normal(), (vision.width,))
        self.vision_positions = nn.Embed(patches + 1, vision.width)
        self.vision_norm, self.vision_tower = nn.LayerNorm(_EPSILON), Tower(vision)
        self.vision_last = nn.LayerNorm(_EPSILON)
        self.vision_projection = nn.Dense(config.projection, use_bias=False)

    def texts(self, ids: jax.Array) -> jax.Array:
        """int32 [B, L] ids, L at most `tokens` -> float32 [B, P], not scaled to length 1."""
        x = self.token_embedding(ids) + self.text_positions(jnp.arange(ids.shape[1]))[None]
        x = self.text_norm(self.text_tower(x, True))
        at = ids.argmax(1) if self.config.end == 2 else (ids == self.config.end).argmax(1)
        return self.text_projection(jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0])

    def pictures(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, S, S, 3], normalised -> float32 [B, P], not scaled to length 1."""
        x = self.patches(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        whole = jnp.broadcast_to(self.whole[None, None], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([whole, x], axis=1)
        x = self.vision_norm(x + self.vision_positions(jnp.arange(x.shape[1]))[None])
        return self.vision_projection(self.vision_last(self.vision_tower(x, False)[:, 0]))

    def __call__(self, ids: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.texts(ids), self.pictures(pixels)


# Name in the released form -> path in ours, but for what lies in towers.
_NAMES = {
    "text_model.embeddings.token_embedding.weight": ("token_embedding", "embedding"),
    "text_model.embeddings.position_embedding.weight": ("text_positions", "embedding"),
    "text_model.final_layer_norm": ("text_norm",),
    "text_projection.weight": ("text_projection", "kernel"),
    "vision_model.embeddings.class_embedding": ("whole",),
    "vision_model.embeddings.patch_embedding.weight": ("patches", "kernel"),
    "vision_model.embeddings.position_embedding.weight": ("vision_positions", "embedding"),
    "vision_model.pre_layrnorm": ("vision_norm",),
    "vision_model.post_layernorm": ("vision_last",),
    "visual_projection.weight": ("vision_projection", "kernel"),
}
_TOWERS = {"text_model.encoder.": "text_tower", "vision_model.encoder.": "vision_tower"}


def clip_params(tensors: Mapping[str, np.ndarray], config: ClipConfig, where: str) -> dict[str, Any]:
    """Our parameters of the released tensors, float32.

    Raises:
        UserError: a tensor is missing, left over, or of another shape than the config says.
    """
    ids, pixels = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, config.image_size, config.image_size, 3))
    wanted = jax.eval_shape(Clip(config).init, jax.random.key(0), ids, pixels)["params"]
    params: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name == "logit_scale" or name.endswith("position_ids"):
            continue
        path, value = _placed(name, np.asarray(tensor, np.float32), where)
        place: Any = params
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    _check(params, wanted, where)
    return params


def _placed(name: str, value: np.ndarray, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    if path := _NAMES.get(name):
        # Kernels of torch have their outputs first.
        turned = np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value
        return path, turned.T if path[-1] == "kernel" and value.ndim == 2 else turned
    module, _, kind = name.rpartition(".")
    tower = next((tower for tower in _TOWERS if module.startswith(tower)), "")
    if module not in _NAMES and not tower:
        raise UserError(f"{where}: tensor {name!r} is none of CLIP's; the folder is of another model")
    path = _NAMES.get(module) or (_TOWERS[tower], module.removeprefix(tower))
    if "norm" in module:
        return (*path, "scale" if kind == "weight" else "bias"), value
    return (*path, "kernel" if kind == "weight" else "bias"), value.T if kind == "weight" else value


def _check(params: Any, wanted: Any, where: str) -> None:
    found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    expected = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
    for name, shape in expected.items():
        if found.get(name) != shape:
            raise UserError(
                f"{where}: {name} must be {shape}, it is {found.get(name, 'missing')}; copy the folder again"
            )
    if left := found.keys() - expected.keys():
        raise UserError(f"{where}: {min(left)} is more than its config.json tells of; copy the folder again")
