"""A whole compression compiles for its shapes, and for nothing else."""

import jax
import pytest
from occ_llm.compression import Settings, compress

pytestmark = pytest.mark.usefixtures("own_cache")

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.fixture
def compilations():
    """Times of all functions that are lowered while the test runs, whether a cache has their machine code or not."""
    found: list[float] = []

    def listen(event: str, seconds: float, **about: str | int) -> None:
        if event == LOWERED:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_another_rate_compiles_nothing(toy, toy_statistics, tmp_path, compilations):
    """All steps, tables and levels are arguments: a search for a size, or a bench, compiles once."""
    compress(toy, tmp_path / "a", toy_statistics, Settings(bits=3.0, states=4))
    compilations.clear()
    compress(toy, tmp_path / "b", toy_statistics, Settings(bits=3.3, states=4))
    assert not compilations
    jax.jit(lambda x: x + 1)(1.0)
    assert compilations, "they are noticed"
