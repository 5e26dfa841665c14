"""Omni-Diffusion in JAX: one masked-diffusion transformer over text, speech and image tokens.

    import omnidiff_jax
    model = omnidiff_jax.load("workdirs/quickstart")
    model.answer("t2i", text="small red circle top left").image.save("circle.png")

`docs/architecture.md` is the map; `omnidiff --help` lists the commands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnidiff_jax.answering.load import load as load
    from omnidiff_jax.answering.model import Answer as Answer
    from omnidiff_jax.answering.model import Model as Model
    from omnidiff_jax.errors import UserError as UserError

__version__ = "0.1.0"
# Name -> module; imported when first asked for, since JAX takes a second that `omnidiff --version` need not wait.
_DOORS = {
    "load": "omnidiff_jax.answering.load",
    "Model": "omnidiff_jax.answering.model",
    "Answer": "omnidiff_jax.answering.model",
    "UserError": "omnidiff_jax.errors",
}
__all__ = ["Answer", "Model", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    return __all__
