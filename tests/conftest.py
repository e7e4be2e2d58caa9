"""What all tests share. Hypothesis draws the same examples on every run and machine, and measures no time."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """Programs are compiled without most optimisations: here compiling takes longer than the sums."""
    import jax  # here: most files of tests do without it

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
