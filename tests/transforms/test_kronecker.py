"""Products with Kronecker factors: the definition, both diagonals, dtypes, and arrays larger than a cache."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.transforms import kronecker_apply


def draw(*shape: int, dtype=np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


def orthogonal_factors(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(len(sizes))
    return [np.linalg.qr(rng.standard_normal((r, r)))[0] for r in sizes]


def dense(factors: list[np.ndarray]) -> np.ndarray:
    return reduce(np.kron, factors, np.ones((1, 1)))


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_is_the_kronecker_product(sizes: list[int], seed: int):
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((r, r)) for r in sizes]
    matrix = dense(factors)
    n = len(matrix)
    x, before, after = (rng.standard_normal(s).astype(np.float32) for s in ((2, n), n, n))
    y = jax.jit(lambda x, b, a: kronecker_apply(factors, x, before=b, after=a))(x, before, after)
    expected = after * ((before * x) @ matrix.T)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(matrix).sum(1).max() * 10)


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (4, 1, 3), (2, 3, 4, 5)])
def test_the_first_factor_has_the_slowest_index(sizes: tuple[int, ...]):
    factors = orthogonal_factors(*sizes)
    x = draw(3, int(np.prod(sizes)))
    np.testing.assert_allclose(kronecker_apply(factors, x), x @ dense(factors).T.astype(np.float32), atol=1e-5)


def test_no_factors_multiply_by_one():
    assert kronecker_apply([], jnp.asarray([[3.0]])) == 3


@pytest.mark.parametrize("side", ["before", "after"])
def test_one_diagonal_alone(side: str):
    factors, x, d = orthogonal_factors(2, 3), draw(4, 6), draw(6)
    matrix = dense(factors) @ np.diag(d) if side == "before" else np.diag(d) @ dense(factors)
    np.testing.assert_allclose(kronecker_apply(factors, x, **{side: d}), x @ matrix.T.astype(np.float32), atol=1e-5)


def test_integer_diagonals_are_signs():
    x = draw(2, 4)
    signs = jnp.asarray([1, -1, -1, 1], jnp.int8)
    np.testing.assert_array_equal(kronecker_apply([np.eye(4)], x, before=signs), x * signs.astype(x.dtype)[None, :])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    factors, x = orthogonal_factors(4, 5), draw(3, 20, dtype=dtype)
    y = kronecker_apply(factors, x)
    assert y.dtype == dtype
    wide = kronecker_apply(factors, x.astype(jnp.float32))
    np.testing.assert_array_equal(y.astype(jnp.float32), wide.astype(dtype).astype(jnp.float32))


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        factors, x = orthogonal_factors(3, 4), draw(2, 12, dtype=np.float64)
        np.testing.assert_allclose(kronecker_apply(factors, x), x @ dense(factors).T, atol=1e-14)


# On a CPU an array goes through in groups of about 2**17 entries: groups that divide the rows, groups that leave a
# remainder, and rows that are each longer than a group.
@pytest.mark.parametrize(
    ("count", "sizes"), [(512, (16, 64)), (521, (18, 32)), (3, (32, 16, 32, 16))], ids=["even", "remainder", "long"]
)
def test_large_arrays_are_transformed_row_by_row(count: int, sizes: tuple[int, ...], lowers_everywhere):
    factors = orthogonal_factors(*sizes)
    x, d = draw(count, int(np.prod(sizes))), draw(int(np.prod(sizes)))
    assert x.size > 2**18

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        return kronecker_apply(factors, x, before=d, after=d)

    y = f(x)
    for i in (0, count // 2, count - 1):
        np.testing.assert_allclose(y[i], f(x[i]), atol=1e-5 * float(jnp.abs(y).max()))
    lowers_everywhere(f, x)


def test_large_arrays_have_gradients_in_both_arguments():
    factors, x, d = orthogonal_factors(16, 32), draw(600, 512), draw(512)

    def energy(x: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.square(kronecker_apply(factors, x, before=d)).sum() / 2

    # The factors are orthogonal: the energy is that of d * x, whatever they are.
    in_x, in_d = jax.jit(jax.grad(energy, argnums=(0, 1)))(x, d)
    np.testing.assert_allclose(in_x, x * jnp.square(d)[None, :], atol=1e-3)
    np.testing.assert_allclose(in_d, jnp.square(x).sum(0) * d, rtol=1e-3, atol=1e-2)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="sizes 2 x 3 do not act on vectors of length 7"):
        kronecker_apply([np.eye(2), np.eye(3)], jnp.ones((4, 7)))
