"""One battery over every concrete transform: what the contract promises, at every size."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import occ_jax.learned as learned
import occ_jax.transforms as transforms
from occ_jax.learned import Cayley, Householder
from occ_jax.transforms import (
    DCT,
    KLT,
    Butterfly,
    PlaneRotation,
    RealFFT,
    Rotation,
    Scaling,
    Transform,
    along_axis,
    block_diagonal,
    blockwise,
    chain,
    hadamard,
    identity,
    inverse,
    klt,
    kronecker,
    num_pairs,
    random_hadamard,
    random_rotation,
)

SIZES = (1, 2, 3, 7, 64, 576, 1536, 4864)


class Case(NamedTuple):
    make: Callable[[int], Transform]
    shape: Callable[[int], tuple[int, ...]] = lambda n: (2, 3, n)


@functools.cache
def orthogonal(n: int) -> jax.Array:
    """A dense orthogonal matrix; drawn from Haar's measure where that is cheap."""
    if n <= 64:
        return random_rotation(n, key=jax.random.key(n)).matrix
    return forward(random_hadamard(n, key=jax.random.key(n)), jnp.eye(n))


def principal_axes(n: int) -> Transform:
    if n > 64:
        return KLT(orthogonal(n), jnp.linspace(2.0, 1.0, n))
    samples = np.random.default_rng(n).standard_normal((2 * n, n)) * np.linspace(1, 3, n)
    return klt(samples.T @ samples / (2 * n))


def halves(n: int) -> Transform:
    size = n // 2 if n % 2 == 0 else n
    return blockwise(random_hadamard(size, key=jax.random.key(3)), size)


def normal(n: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(n).standard_normal(shape), jnp.float32)


def turned_blocks(n: int) -> Transform:
    """A Cayley transform with large parameters; of blocks where its factorization would take long."""
    size = n if n <= 64 else 64
    return blockwise(Cayley(3 * normal(n, size, size), orthogonal(size)), size)


def factors(n: int) -> Transform:
    slow = next(k for k in (16, 8, 7, 3, 2, 1) if n % k == 0)
    return kronecker([Rotation(orthogonal(slow)), random_hadamard(n // slow, key=jax.random.key(5))], [slow, n // slow])


def unequal_blocks(n: int) -> Transform:
    size = next(k for k in (64, 8, 6, 5, 4, 3, 2, 7, 1) if n % k == 0)
    return block_diagonal([random_hadamard(size, key=jax.random.key(i)) for i in range(n // size)], size)


CASES = {
    "identity": Case(lambda n: identity()),
    "hadamard": Case(hadamard),
    "random_hadamard": Case(lambda n: random_hadamard(n, key=jax.random.key(1))),
    "rotation": Case(lambda n: Rotation(orthogonal(n))),
    "klt": Case(principal_axes),
    "dct": Case(lambda n: DCT()),
    "real_fft": Case(lambda n: RealFFT()),
    "chain": Case(lambda n: chain(random_hadamard(n, key=jax.random.key(2)), DCT(), RealFFT())),
    "inverse": Case(lambda n: inverse(chain(RealFFT(), hadamard(n)))),
    "along_axis": Case(lambda n: along_axis(random_hadamard(n, key=jax.random.key(4)), -2), lambda n: (2, n, 3)),
    "blockwise": Case(halves),
    "cayley": Case(turned_blocks),
    "householder": Case(lambda n: Householder(normal(n, 5, n))),
    "butterfly": Case(lambda n: Butterfly(normal(n, 2, num_pairs(n)), n)),
    "kronecker": Case(factors),
    "block_diagonal": Case(unequal_blocks),
    "plane_rotation": Case(lambda n: PlaneRotation(normal(n, n // 2), n)),
    "scaling": Case(lambda n: Scaling(normal(n, n))),
}

# Compiled as a whole: the battery is about results, and one program is made sooner than its parts.
forward = jax.jit(lambda t, x: t.forward(x))
inverted = jax.jit(lambda t, x: t.inverse(x))

each_transform = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
each_size = pytest.mark.parametrize("n", SIZES)


def sample(case: Case, n: int, dtype=jnp.float32) -> jax.Array:
    values = np.random.default_rng(n).standard_normal(case.shape(n))
    return jnp.asarray(values, dtype)


def relative_error(a: jax.Array, b: jax.Array) -> float:
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_battery_covers_every_concrete_class():
    exported = [*vars(transforms).values(), *vars(learned).values()]
    public = {c for c in exported if inspect.isclass(c) and issubclass(c, Transform)}
    concrete = {c for c in public if not inspect.isabstract(c)}
    used: set[type] = set()

    def visit(t: Transform) -> None:
        used.add(type(t))
        for part in vars(t).values():
            for inner in part if isinstance(part, tuple) else (part,):
                if isinstance(inner, Transform):
                    visit(inner)

    for case in CASES.values():
        visit(case.make(4))
    assert used == concrete


@each_size
@each_transform
def test_inverse_undoes_forward_and_norms_are_kept(case: Case, n: int):
    t, x = case.make(n), sample(case, n)
    y = forward(t, x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert relative_error(inverted(t, y), x) < 1e-5
    assert relative_error(forward(t, inverted(t, x)), x) < 1e-5
    if t.is_orthonormal:
        np.testing.assert_allclose(jnp.sum(y * y), jnp.sum(x * x), rtol=1e-5)


@each_transform
def test_says_whether_it_is_orthonormal(case: Case):
    t, x = case.make(6), sample(case, 6)
    keeps_norm = np.isclose(jnp.linalg.norm(forward(t, x)), jnp.linalg.norm(x), rtol=1e-5)
    assert t.is_orthonormal == keeps_norm


@each_transform
def test_is_linear_and_independent_for_each_row(case: Case):
    t, x = case.make(35), sample(case, 35)
    np.testing.assert_allclose(forward(t, 2 * x + 1), 2 * forward(t, x) + forward(t, jnp.ones_like(x)), atol=2e-5)
    # The leading axis is the first one in every case.
    np.testing.assert_allclose(forward(t, x)[1], forward(t, x[1:])[0], atol=1e-6)


@each_transform
def test_jit_and_vmap_change_nothing(case: Case):
    t, x = case.make(24), sample(case, 24)
    for f, op_by_op in ((forward, t.forward), (inverted, t.inverse)):
        expected = op_by_op(x)
        np.testing.assert_allclose(f(t, x), expected, atol=1e-5)
        np.testing.assert_allclose(jax.vmap(f, in_axes=(None, 0))(t, x), expected, atol=1e-5)


@each_transform
def test_a_stack_of_transforms_is_mapped_over(case: Case):
    # Reversed signs, or the rows of a matrix in reverse, make another transform of the same kind.
    ts = [case.make(12), jax.tree.map(lambda leaf: leaf[::-1], case.make(12))]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ts)
    x = sample(case, 12)
    together = jax.vmap(forward)(stack, x) if jax.tree.leaves(stack) else forward(ts[0], x)
    np.testing.assert_allclose(together, jnp.stack([forward(t, row) for t, row in zip(ts, x)]), atol=1e-5)


@each_transform
def test_gradient_is_the_adjoint(case: Case):
    """The gradient of <c, T x> is T^t c, and for an orthonormal T the adjoint is the inverse."""
    t, x = case.make(24), sample(case, 24)
    c = jnp.cos(x)
    gradient = jax.jit(jax.grad(lambda x: jnp.vdot(c, t.forward(x))))(x)
    adjoint = inverted(t, c) if t.is_orthonormal else c @ forward(t, jnp.eye(24)).T
    np.testing.assert_allclose(gradient, adjoint, atol=1e-5)
    tangent = jax.jit(lambda x: jax.jvp(t.inverse, (x,), (c,))[1])(x)
    np.testing.assert_allclose(tangent, inverted(t, c), atol=1e-5)


@each_transform
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(case: Case, dtype):
    t, x = case.make(24), sample(case, 24, dtype)
    y = forward(t, x)
    assert y.dtype == dtype
    expected = forward(t, x.astype(jnp.float32)).astype(dtype)
    # One rounding at the end, at most one for each link of a chain: a few units in the last place.
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected.astype(jnp.float32), atol=8 * float(jnp.finfo(dtype).eps)
    )


@each_transform
def test_double_precision_is_kept(case: Case):
    with jax.enable_x64(True):
        t, x = case.make(36), sample(case, 36, jnp.float64)
        y = forward(t, x)
        assert y.dtype == jnp.float64
        # Matrices that were drawn in float32 are orthogonal to float32 only.
        exact = not any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(t))
        assert relative_error(inverted(t, y), x) < (1e-13 if exact else 1e-5)


@each_transform
def test_lowers_to_every_platform(case: Case, lowers_everywhere):
    t, x = case.make(12), sample(case, 12)
    lowers_everywhere(forward, t, x)
    lowers_everywhere(inverted, t, x)


@each_transform
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_survive(case: Case, scale: float):
    t, x = case.make(24), sample(case, 24) * scale
    assert relative_error(inverted(t, forward(t, x)), x) < 1e-5


@each_transform
def test_no_rows_give_no_rows(case: Case):
    t = case.make(8)
    x = jnp.zeros((0, *case.shape(8)))
    assert forward(t, x).shape == x.shape
    assert inverted(t, x).shape == x.shape


@each_transform
def test_is_a_pytree_that_survives_flattening(case: Case):
    t, x = case.make(24), sample(case, 24)
    leaves, structure = jax.tree.flatten(t)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert type(rebuilt) is type(t)
    np.testing.assert_array_equal(forward(rebuilt, x), forward(t, x))
