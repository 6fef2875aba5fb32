"""One strict setting for every test: no silent promotion, four CPU devices, warnings are errors."""

from collections.abc import Callable

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def lowers_everywhere() -> Callable[..., None]:
    """``lowers_everywhere(f, *args)``: ``f`` compiles to StableHLO for CPU, CUDA and TPU without the hardware."""

    def check(f: Callable, *args) -> None:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.asarray(x).dtype), args)
        for platform in ("cpu", "cuda", "tpu"):
            exported = jax.export.export(jax.jit(f), platforms=[platform])(*shapes)
            assert exported.platforms == (platform,)

    return check
