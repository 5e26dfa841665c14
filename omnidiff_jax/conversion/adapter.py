"""The released `ResamplerProjector` <-> `Adapter`."""

from omnidiff_jax.conversion.rules import Rule


def rules(prefix: str = "") -> tuple[Rule, ...]:
    """The adapter's table.

    Args:
        prefix: what stands before every torch name, e.g. "model.audio_projection.".
    """
    return (
        Rule(f"{prefix}pre_proj_layernorm.weight", "norm/scale"),
        Rule(f"{prefix}pre_proj_layernorm.bias", "norm/bias"),
        Rule(f"{prefix}mlp.0.weight", "inward", "linear"),
        Rule(f"{prefix}mlp.2.weight", "outward", "linear"),
    )
