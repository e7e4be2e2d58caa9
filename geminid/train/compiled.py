"""Compiled programs are kept in the user's cache: a resumed or repeated run does not compile again."""

from __future__ import annotations

import os

from geminid.corpus.fetch import default_cache


def keep_compiled(folder: str = "compiled", least_s: float = 1.0) -> None:
    """Turns on JAX's persistent compilation cache, for programs that took `least_s` seconds or more.

    folder: of the user's cache. Programs for one core and for several differ in their sums: keep them apart.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(default_cache() / folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_s)
