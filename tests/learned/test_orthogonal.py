"""Orthogonal parametrisations: started at a given transform they are it, and steps move the learned part alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occ_jax.learned import RateDistortion, cayley, fit, householder
from occ_jax.transforms import (
    Chain,
    PlaneRotation,
    Transform,
    blockwise,
    butterfly,
    chain,
    klt,
    kronecker,
    random_hadamard,
)

KEY = jax.random.key(5)
N = 12
WIDTH = 576
X, TARGET = (
    jnp.asarray(np.random.default_rng(seed).standard_normal((24, N)) * np.linspace(0.5, 3, N), jnp.float32)
    for seed in range(2)
)

STARTS = {"hadamard": random_hadamard(N, key=KEY), "klt": klt(X.T @ X / len(X))}

# A Cayley transform takes the start itself; all others begin at the identity, behind it.
STARTED = {
    "cayley": lambda start: cayley(N, start=start),
    "householder": lambda start: chain(start, householder(N, 3, key=KEY)),
    "butterfly": lambda start: chain(start, butterfly(N)),
    "kronecker": lambda start: chain(start, kronecker([cayley(3), cayley(4)], [3, 4])),
    "blockwise": lambda start: chain(start, blockwise(cayley(4), 4)),
    "plane_rotation": lambda start: chain(start, PlaneRotation(jnp.zeros(N // 2), N)),
}

WIDE = {
    "cayley": lambda start: cayley(WIDTH, start=start),
    "butterfly": lambda start: chain(start, butterfly(WIDTH)),
}

each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
each_parametrisation = pytest.mark.parametrize("started", STARTED.values(), ids=STARTED.keys())


def matrix(t: Transform, n: int = N) -> np.ndarray:
    return np.asarray(t.forward(jnp.eye(n)), np.float64).T


def departure(t: Transform, n: int = N) -> float:
    q = matrix(t, n)
    return np.abs(q @ q.T - np.eye(n)).max()


def fixed(t: Transform) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(t.transforms[0] if isinstance(t, Chain) else t.start)]


def learned(t: Transform) -> list[np.ndarray]:
    parts = t.transforms[1:] if isinstance(t, Chain) else t.generator
    return [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]


def distance(t: Transform, pair: tuple[jax.Array, jax.Array], step) -> RateDistortion:
    """From data that are turned to where they should go."""
    x, target = pair
    return RateDistortion(jnp.square(t.forward(x) - target).mean(), jnp.float32(0))


@each_start
@each_parametrisation
def test_without_a_step_it_is_the_start(started, start):
    t = started(start)
    np.testing.assert_allclose(matrix(t), matrix(start), atol=1e-6)
    np.testing.assert_allclose(t.inverse(t.forward(X)), X, atol=1e-5)
    np.testing.assert_allclose(t.inverse(start.forward(X)), X, atol=1e-5)


@each_start
@each_parametrisation
def test_steps_move_the_learned_part_alone_and_along_the_orthogonal_group(started, start):
    first = started(start)
    fitted = fit(first, distance, key=KEY, steps=20, data=(X, TARGET), optimizer=optax.adam(0.1), chunk=20)
    t = fitted.params
    assert fitted.log.bits[-1] < fitted.log.bits[0]
    for before, after in zip(fixed(first), fixed(t), strict=True):
        np.testing.assert_array_equal(after, before)
    assert all((after != before).any() for before, after in zip(learned(first), learned(t), strict=True))
    assert np.abs(matrix(t) - matrix(start)).max() > 0.1
    assert departure(t) < 1e-5
    np.testing.assert_allclose(t.inverse(t.forward(X)), X, atol=1e-5)


@pytest.mark.parametrize("started", WIDE.values(), ids=WIDE.keys())
def test_stays_orthogonal_in_single_precision_at_the_width_of_a_network(started):
    """Parameters become large: angles of half a turn, and linear systems with a condition of hundreds."""
    rng = np.random.default_rng(1)
    data = tuple(jnp.asarray(rng.standard_normal((4, WIDTH)), jnp.float32) for _ in range(2))
    start = random_hadamard(WIDTH, key=KEY)
    fitted = fit(started(start), distance, key=KEY, steps=8, data=data, optimizer=optax.adam(0.7), chunk=8)
    t = fitted.params
    assert max(np.abs(leaf).max() for leaf in learned(t)) > 3
    assert np.abs(matrix(t, WIDTH) - matrix(start, WIDTH)).max() > 0.1
    assert departure(t, WIDTH) < 1e-5
    assert fitted.log.orthogonality.max() < 1e-5
