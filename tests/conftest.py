"""One strict setting for every test: no silent promotion, four CPU devices, warnings are errors."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)

MOST_MAPS = 20_000
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"


def pytest_configure(config: pytest.Config) -> None:
    """What one process has compiled, no other compiles again: neither a second worker nor a command under test.

    Most functions run once and for a moment, so they are compiled without optimization, and the workers have the cores
    for each other: products that want all of them wait for a worker that has one.
    """
    os.environ.setdefault("XLA_FLAGS", QUICK)
    place = str(config.cache.mkdir("compiled")) if config.cache else None
    if place and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = place
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Forget compiled functions before they use up the memory maps of the process.

    Every one of them holds a few, Linux grants 65,530 to a process, and thousands of tests compile more than that.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def lowers_everywhere() -> Callable[..., None]:
    """``lowers_everywhere(f, *args)``: ``f`` compiles to StableHLO for CPU, CUDA and TPU without the hardware."""

    def check(f: Callable, *args) -> None:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.asarray(x).dtype), args)
        for platform in ("cpu", "cuda", "tpu"):
            exported = jax.export.export(jax.jit(f), platforms=[platform])(*shapes)
            assert exported.platforms == (platform,)

    return check
