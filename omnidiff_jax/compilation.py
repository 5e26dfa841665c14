"""Where compiled programs are kept between runs."""

import os
from pathlib import Path

import jax

from omnidiff_jax.buckets import Bucket, is_remote
from omnidiff_jax.files import expanded


def use_cache(folder: str = "") -> None:
    """Keeps compiled programs in `folder`, which may be a URL; "" = JAX_COMPILATION_CACHE_DIR, or the user's cache
    folder."""
    if folder:
        if is_remote(folder):
            Bucket(folder).check()
        jax.config.update("jax_compilation_cache_dir", str(expanded(folder)))
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "omnidiff_jax" / "xla"))
