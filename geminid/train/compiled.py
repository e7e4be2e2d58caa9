"""Compiled programs are kept in the user's cache: a resumed or repeated run does not compile again."""

from __future__ import annotations

import os

from geminid.corpus.fetch import default_cache


def keep_compiled() -> None:
    """Turns on JAX's persistent compilation cache, for programs that took a second or more."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
