"""The mean over a batch: its value and gradient are those of the plain mean, its memory is that of one element."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occ_jax.learned import cayley, mean_over_batch
from occ_jax.transforms import chain, hadamard

KEY = jax.random.key(0)
WIDTH = 8


def loss(params, constants, element):
    turned, gain = params
    x, label = element
    return jnp.square(jnp.tanh(turned.forward(x) * gain[0]) - constants["goal"][label][None]).sum()


def example(size: int):
    """A learned rotation after fixed signs, a gain, an index; what the loss compares with; a batch."""
    keys = jax.random.split(KEY, 3)
    params = chain(hadamard(WIDTH), cayley(WIDTH)), (jnp.float32(1.5), jnp.int32(7))
    batch = jax.random.normal(keys[0], (size, 5, WIDTH)), jax.random.randint(keys[1], (size,), 0, 3)
    return params, {"goal": jax.random.normal(keys[2], (3, WIDTH))}, batch


def plain(params, constants, batch):
    return jnp.mean(jax.vmap(loss, in_axes=(None, None, 0))(params, constants, batch))


def test_value_and_gradient_are_those_of_the_mean():
    for size in (1, 2, 7):
        given = example(size)
        value, found = jax.jit(jax.value_and_grad(lambda *a: 3 * mean_over_batch(loss, *a), allow_int=True))(*given)
        expected = jax.value_and_grad(lambda *a: 3 * plain(*a), allow_int=True)(*given)
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(mean_over_batch(loss, *given), plain(*given), rtol=1e-6)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected[1]), strict=True):
            assert ours.dtype == theirs.dtype
            if ours.dtype != jax.dtypes.float0:
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_four_devices_do_what_one_does():
    given, mesh = example(8), Mesh(np.array(jax.devices()[:4]), ("devices",))

    def mean(*given, mesh=None):
        return mean_over_batch(loss, *given, mesh=mesh)

    one, four = (jax.jit(jax.value_and_grad(partial(mean, mesh=m), allow_int=True))(*given) for m in (None, mesh))
    assert len(four[0].sharding.device_set) == 4
    for ours, theirs in zip(jax.tree.leaves(four), jax.tree.leaves(one), strict=True):
        if ours.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean(*given, mesh=mesh), one[0], rtol=1e-6)


def test_what_is_constant_has_no_gradient():
    params, constants, batch = example(3)
    gradient = jax.grad(lambda c: mean_over_batch(loss, params, c, batch))(constants)
    np.testing.assert_array_equal(gradient["goal"], 0.0)


def test_memory_does_not_grow_with_the_batch():
    def deep(w, _, x):
        for _ in range(20):
            x = jnp.tanh(x @ w)
        return jnp.square(x).mean()

    def taken(mean, size: int) -> int:
        batch = jnp.zeros((size, 256, 32))
        compiled = jax.jit(jax.grad(lambda w: mean(deep, w, None, batch))).lower(jnp.eye(32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def in_a_loop(loss, w, constants, batch):
        return jnp.mean(jax.lax.map(lambda x: loss(w, constants, x), batch))

    assert taken(mean_over_batch, 16) < 1.2 * taken(mean_over_batch, 2)
    assert taken(in_a_loop, 16) > 4 * taken(in_a_loop, 2)
