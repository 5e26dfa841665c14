"""Where compiled programs are kept between runs."""

import os
from pathlib import Path

import jax


def use_cache(folder: str = "") -> None:
    """Keeps compiled programs in `folder`; "" = JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "omnidiff_jax" / "xla"))
