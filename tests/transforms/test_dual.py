"""The dual keeps every inner product, whatever it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.transforms import (
    DCT,
    PlaneRotation,
    RealFFT,
    Rotation,
    Scaling,
    along_axis,
    block_diagonal,
    blockwise,
    chain,
    dual,
    inverse,
    kronecker,
    random_rotation,
)

KEY = jax.random.key(0)
N = 12
SCALES = jnp.linspace(-2, 1, N)


def mixed(i: int):
    return chain(random_rotation(4, key=jax.random.key(i)), Scaling(jnp.linspace(-i, 1, 4)))


@pytest.mark.parametrize(
    "transform",
    [
        DCT(),
        random_rotation(N, key=KEY),
        Scaling(SCALES),
        chain(random_rotation(N, key=KEY), Scaling(SCALES), DCT(), Scaling(-2 * SCALES)),
        inverse(chain(random_rotation(N, key=KEY), Scaling(SCALES))),
        blockwise(mixed(1), 4),
        block_diagonal([mixed(i) for i in range(3)], 4),
        along_axis(chain(Scaling(SCALES), PlaneRotation(SCALES[:6], N)), -1),
        kronecker([Scaling(SCALES[:3]), random_rotation(4, key=KEY)], [3, 4]),
    ],
    ids=lambda t: type(t).__name__,
)
def test_inner_products_stay(transform):
    a, b = (jnp.asarray(np.random.default_rng(seed).standard_normal((5, N)), jnp.float32) for seed in (0, 1))
    products = (dual(transform).forward(a) * transform.forward(b)).sum(-1)
    np.testing.assert_allclose(products, (a * b).sum(-1), atol=1e-4)
    again = dual(dual(transform)).forward(a)
    np.testing.assert_allclose(again, transform.forward(a), rtol=1e-5, atol=1e-5)


def test_what_is_orthonormal_is_its_own_dual():
    t = chain(DCT(), Rotation(jnp.eye(N)))
    assert dual(t) is t


def test_unknown_classes_are_refused():
    class Stretch(RealFFT):
        is_orthonormal = False

    with pytest.raises(ValueError, match="no dual is known of Stretch"):
        dual(Stretch())


def test_plane_rotations_commute_with_each_other_and_blocks_repeat():
    one, other = (PlaneRotation(jnp.asarray(np.random.default_rng(s).normal(size=3), jnp.float32), 7) for s in (2, 3))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 7)), jnp.float32)
    np.testing.assert_allclose(one.forward(other.forward(x)), other.forward(one.forward(x)), atol=1e-5)
    np.testing.assert_array_equal(one.forward(x)[:, 3], x[:, 3])
    blocks = block_diagonal([mixed(i) for i in range(2)], 4)
    y = jnp.asarray(np.random.default_rng(5).normal(size=(2, 16)), jnp.float32)
    parts = [mixed(i // 2).forward(y[:, 4 * i : 4 * i + 4]) for i in range(4)]
    np.testing.assert_allclose(blocks.repeat(2).forward(y), jnp.concatenate(parts, -1), atol=1e-5)


@pytest.mark.parametrize(("angles", "size"), [(3, 5), (2, 0), (0, 3)])
def test_wrong_numbers_of_angles_are_refused(angles, size):
    with pytest.raises(ValueError, match="takes"):
        PlaneRotation(jnp.zeros(angles), size)
