"""Networks: their shapes, their training, and the reparameterisations that they do not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_toy.invariance import WIDTH, flip_signs, linear_pairs, permute, rescale, rotate_between
from occ_toy.networks import ACTIVATIONS, Architecture, evaluate, gauss_newton, inputs, sine, train
from occ_toy.sources import SOURCES

X = inputs(SOURCES["bandlimited"].points())[::8]


def network(name, width=WIDTH):
    return Architecture(num_inputs=1, width=width, activation=ACTIVATIONS[name])


def random_parameters(net, count=2):
    return jax.vmap(lambda key: net.initial(key=key))(jax.random.split(jax.random.key(1), count))


def moved(net, thetas, changed):
    before, after = (np.asarray(evaluate(net, t, X)) for t in (thetas, changed))
    return np.abs(after - before).max() / np.sqrt(np.square(before).mean())


@pytest.mark.parametrize(("name", "change"), [("relu", permute), ("relu", rescale), ("tanh", flip_signs)])
def test_a_reparameterised_network_is_the_same_function(name, change):
    net = network(name)
    thetas = random_parameters(net)
    rng = np.random.default_rng(0)
    changed = jnp.stack([net.flatten(change(net.layers(theta), rng)) for theta in thetas])
    assert not np.allclose(changed, thetas)
    assert moved(net, thetas, changed) < 2e-5


def test_scaling_a_tanh_unit_does_change_the_function():
    net = network("tanh")
    thetas = random_parameters(net)
    changed = jnp.stack([net.flatten(rescale(net.layers(t), np.random.default_rng(0))) for t in thetas])
    assert moved(net, thetas, changed) > 0.1


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_rotation_between_linear_layers_cancels(is_shared):
    pair, thetas = linear_pairs(2)
    np.testing.assert_allclose(evaluate(pair, thetas, X), SOURCES["convolution"].draw(2, stream=0), atol=1e-5)
    turned = rotate_between(thetas, is_shared)
    assert moved(pair, thetas, turned) < 2e-5
    np.testing.assert_allclose(np.square(turned).sum(1), np.square(thetas).sum(1), rtol=1e-5)


def test_parameters_go_into_layers_and_back():
    net = network("sine", 8)
    theta = random_parameters(net, 1)[0]
    assert theta.shape == (net.num_parameters,)
    layers = net.layers(theta)
    assert layers["second"]["kernel"].shape == (8, 8)
    np.testing.assert_array_equal(net.flatten(layers), theta)
    first = sine(X @ layers["first"]["kernel"] + layers["first"]["bias"][None, :])
    second = sine(first @ layers["second"]["kernel"] + layers["second"]["bias"][None, :])
    by_hand = second @ layers["last"]["kernel"] + layers["last"]["bias"][None, :]
    np.testing.assert_allclose(net.apply(theta, X), by_hand[:, 0], rtol=1e-4, atol=1e-5)


def test_the_sine_is_a_sine():
    x = jnp.linspace(-100, 100, 2001, dtype=jnp.float32)
    np.testing.assert_allclose(sine(x), np.sin(np.asarray(x, np.float64)), atol=3e-5)


def test_gauss_newton_predicts_the_change_of_the_function():
    net = network("tanh", 8)
    theta = random_parameters(net, 1)
    hessian = np.asarray(gauss_newton(net, theta, X), np.float64)
    error = np.random.default_rng(0).normal(size=theta.shape[1]) * 1e-4
    values = [np.asarray(evaluate(net, theta + jnp.asarray(e, jnp.float32)[None, :], X)) for e in (0 * error, error)]
    assert np.square(values[1] - values[0]).mean() == pytest.approx(error @ hessian @ error, rel=0.05)


def test_training_fits_every_draw_from_every_seed():
    net = network("tanh", 8)
    targets = jnp.stack([jnp.cos(3 * X[:, 0]), X[:, 0]])
    keys = jax.random.split(jax.random.key(0), 2)
    thetas = train(net, X, targets, keys=keys, num_steps=400)
    assert thetas.shape == (2, 2, net.num_parameters)
    for theta in thetas:
        assert float(jnp.square(evaluate(net, theta, X) - targets).mean()) < 1e-2
    assert not np.allclose(thetas[0], thetas[1])
