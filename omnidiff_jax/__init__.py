"""Omni-Diffusion in JAX: one masked-diffusion transformer over text, speech and image tokens.

`docs/architecture.md` is the map; `omnidiff --help` lists the commands.
"""

__version__ = "0.1.0"
