"""What all tests share. Hypothesis draws the same examples on every run and machine, and measures no time."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")


LONGEST = ("test_demo_fast.py", "test_meshes.py", "test_schedules.py")  # begun first, others go beside them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """Programs are compiled without most optimisations: here compiling takes longer than the sums."""
    import jax  # here: most files of tests do without it

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
