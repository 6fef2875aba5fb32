"""The trainer: whatever is trained, it resumes to the bit, shares out work without changing it, and freezes what it must."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occ_jax.learned import (
    RateDistortion,
    cayley,
    default_labels,
    fit,
    householder,
    materialize,
    orthogonality_error,
    relax,
    scale_field_bits,
)
from occ_jax.transforms import (
    Butterfly,
    Kronecker,
    PlaneRotation,
    Scaling,
    blockwise,
    butterfly,
    chain,
    hadamard,
    klt,
    num_pairs,
    random_rotation,
)

KEY = jax.random.key(7)
N = 6
X = jnp.asarray(
    np.random.default_rng(0).laplace(size=(32, N)) @ np.random.default_rng(1).standard_normal((N, N)), jnp.float32
)


def noisy_loss(t, x, step):
    """A rate with noise in it, so that the keys of steps and layers matter."""
    y = t.forward(x)
    z = relax(4 * y, key=step.key, temperature=step.temperature)
    return RateDistortion(scale_field_bits(y, scales="columns"), jnp.square(z / 4 - y).mean())


def leaves(fitted):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((fitted.params, fitted.log))]


@pytest.fixture(scope="module")
def stack():
    """Four layers of equal shape and their data."""
    ts = [cayley(N, start=random_rotation(N, key=jax.random.key(i))) for i in range(4)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *ts), jnp.stack(
        [jnp.roll(X, i, axis=0) * (i + 1) for i in range(4)]
    )


def test_goes_on_after_an_interruption_as_if_there_had_been_none(tmp_path):
    settings = {"key": KEY, "steps": 25, "data": X, "chunk": 10, "temperature": optax.linear_schedule(1.0, 0.2, 25)}
    whole = fit(cayley(N), noisy_loss, **settings)
    path = tmp_path / "fit.safetensors"

    def stop(done, log):
        assert len(log.bits) == done
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cayley(N), noisy_loss, **settings, state_path=path, on_chunk=stop)
    seen = []
    resumed = fit(cayley(N), noisy_loss, **settings, state_path=path, on_chunk=lambda done, _: seen.append(done))
    assert seen == [20, 25]
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    again = fit(
        cayley(N), noisy_loss, **settings, state_path=path, on_chunk=lambda done, _: pytest.fail("nothing is left")
    )
    np.testing.assert_array_equal(again.params.generator, whole.params.generator)
    with pytest.raises(ValueError, match="another fit"):
        fit(cayley(N), noisy_loss, **settings | {"key": jax.random.key(8)}, state_path=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not the state of a fit"):
        fit(cayley(N), noisy_loss, **settings, state_path=path)


def test_a_state_is_saved_at_an_interrupt_and_at_the_end(tmp_path, monkeypatch):
    settings = {"key": KEY, "steps": 6, "data": X, "chunk": 1, "state_path": tmp_path / "state", "save_seconds": 1e9}
    saved, fit_module = [], importlib.import_module("occ_jax.learned.fit")
    written = fit_module.write_state
    monkeypatch.setattr(fit_module, "write_state", lambda path, step, *a: (saved.append(step), written(path, step, *a)))

    def stop(done, log):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cayley(N), noisy_loss, **settings, on_chunk=stop)
    fit(cayley(N), noisy_loss, **settings)
    assert saved == [3, 6]


def centred(t, x):
    """What follows the parameters: here the mean that the moved data had."""
    return t.forward(x).mean(0)


def centred_loss(t, seen, step):
    x, mean = seen
    return RateDistortion(noisy_loss(t, x, step).bits, jnp.square(t.forward(x).mean(0) - 2 * mean).sum())


def test_what_is_refreshed_stays_between_two_calls(tmp_path):
    """Refreshed in every step it is what the loss could make itself; else it is that of the last refresh."""
    settings = {"key": KEY, "steps": 7, "data": X}
    itself = fit(
        cayley(N), lambda t, x, step: centred_loss(t, (x, jax.lax.stop_gradient(centred(t, x))), step), **settings
    )
    always = fit(cayley(N), centred_loss, **settings, refresh=centred, chunk=3)
    for a, b in zip(leaves(always), leaves(itself), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    found = []

    def noted(t, x):
        jax.debug.callback(lambda: found.append(1))
        return centred(t, x)

    kept = settings | {"refresh": centred, "refresh_every": 3, "state_path": tmp_path / "state"}
    whole = fit(cayley(N), centred_loss, **settings, refresh=noted, refresh_every=3)
    jax.effects_barrier()
    assert len(found) == 3, "before steps 0, 3 and 6"
    assert (leaves(whole)[0] != leaves(always)[0]).any()

    def stop(done, log):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cayley(N), centred_loss, **kept, on_chunk=stop, chunk=1)
    visits = []
    resumed = fit(cayley(N), centred_loss, **kept, on_chunk=lambda done, _: visits.append(done))
    assert visits == [6, 7], "from where the last refresh was, step 3"
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stacked_layers_are_refreshed_as_if_alone(stack):
    ts, xs = stack
    options = {"steps": 4, "refresh": centred, "refresh_every": 2}
    together = fit(ts, centred_loss, key=KEY, data=xs, stacked=True, **options)
    keys = jax.random.split(KEY, 4)
    alone = fit(jax.tree.map(lambda leaf: leaf[2], ts), centred_loss, key=keys[2], data=xs[2], **options)
    np.testing.assert_allclose(together.params.generator[2], alone.params.generator, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_fit_and_keeps_the_state_before(tmp_path):
    def diverges(t, x, step):
        point = noisy_loss(t, x, step)
        return RateDistortion(jnp.where(step.index == 5, jnp.nan, point.bits), point.distortion)

    options = {"key": KEY, "steps": 8, "data": X, "chunk": 2, "state_path": tmp_path / "state"}
    with pytest.raises(ValueError, match="step 5 is not finite: lower the learning rate"):
        fit(cayley(N), diverges, **options)
    assert len(fit(cayley(N), noisy_loss, **options).log.bits) == 8, "goes on from step 4"


def test_stacked_layers_are_trained_as_if_alone(stack):
    ts, xs = stack
    together = fit(ts, noisy_loss, key=KEY, steps=5, data=xs, stacked=True)
    assert together.log.bits.shape == (5, 4)
    keys = jax.random.split(KEY, 4)
    alone = fit(jax.tree.map(lambda leaf: leaf[2], ts), noisy_loss, key=keys[2], steps=5, data=xs[2])
    np.testing.assert_allclose(together.params.generator[2], alone.params.generator, atol=1e-6)
    np.testing.assert_allclose(together.log.distortion[:, 2], alone.log.distortion, rtol=1e-4)


@pytest.mark.parametrize("stacked", [True, False])
def test_four_devices_do_what_one_does(stack, stacked):
    ts, xs = stack if stacked else (cayley(N), X)
    settings = {"key": KEY, "steps": 6, "data": xs, "stacked": stacked}
    one = fit(ts, noisy_loss, **settings)
    four = fit(ts, noisy_loss, **settings, devices=jax.devices()[:4])
    for a, b in zip(leaves(four), leaves(one), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_only_what_has_free_parameters_is_trained():
    t = chain(klt(jnp.diag(jnp.arange(1.0, N + 1))), hadamard(N), cayley(N, start=hadamard(N)), Scaling(jnp.zeros(N)))
    fitted = fit({"t": t, "step": jnp.array(0.5), "count": jnp.array(3)}, tree_loss, key=KEY, steps=2, data=X)
    before, after = jax.tree.leaves_with_path(t), jax.tree.leaves(fitted.params["t"])
    moved = {jax.tree_util.keystr(path).split(".")[-1] for (path, a), b in zip(before, after) if (a != b).any()}
    assert moved == {"generator", "log2_scale"}
    assert fitted.params["step"] != 0.5
    assert fitted.params["count"] == 3


def tree_loss(params, x, step):
    bits = scale_field_bits(params["t"].forward(x) / params["step"], scales="columns")
    return RateDistortion(bits, jnp.square(params["step"]) / 12)


def test_labels_choose_optimizers():
    t = chain(cayley(N), Scaling(jnp.zeros(N)))
    labels = jax.tree.map(lambda _: "slow", t.transforms[0]), jax.tree.map(lambda _: "frozen", t.transforms[1])
    labels = jax.tree.unflatten(jax.tree.structure(t), jax.tree.leaves(labels))
    fitted = fit(t, noisy_loss, key=KEY, steps=1, data=X, labels=labels, optimizer={"slow": optax.sgd(0.0)})
    np.testing.assert_array_equal(fitted.params.transforms[0].generator, 0)
    np.testing.assert_array_equal(fitted.params.transforms[1].log2_scale, 0)
    with pytest.raises(ValueError, match="'slow'"):
        fit(t, noisy_loss, key=KEY, steps=1, data=X, labels=labels, optimizer={"fast": optax.sgd(0.0)})
    with pytest.raises(ValueError, match="every leaf is frozen"):
        fit(hadamard(N), noisy_loss, key=KEY, steps=1, data=X)
    with pytest.raises(ValueError, match="int8"):
        fit(hadamard(N), noisy_loss, key=KEY, steps=1, data=X, labels=jax.tree.map(lambda _: "all", hadamard(N)))
    with pytest.raises(ValueError, match="at least one step"):
        fit(t, noisy_loss, key=KEY, steps=0, data=X)


def test_labels_of_nested_transforms():
    t = blockwise(chain(hadamard(4), cayley(4)), 4)
    assert jax.tree.leaves(default_labels(t)) == ["frozen", "trained"]
    assert jax.tree.structure(default_labels(t)) == jax.tree.structure(t)


def test_schedules_reach_the_loss_and_its_weight():
    def loss(w, _, step):
        return RateDistortion(0 * w.sum(), w.sum() * step.temperature)

    sgd = optax.sgd(1.0)
    fitted = fit(
        jnp.zeros(1), loss, key=KEY, steps=3, optimizer=sgd, lmbda=lambda i: 10.0**i, temperature=lambda i: i + 1
    )
    assert fitted.params.tolist() == [-(1.0 + 2 * 10 + 3 * 100)]


@pytest.mark.parametrize(
    "t",
    [
        cayley(18, start=random_rotation(18, key=KEY)),
        householder(18, 4, key=KEY),
        butterfly(18),
        Kronecker((cayley(3), cayley(6)), (3, 6)),
        PlaneRotation(jnp.zeros(9), 18),
    ],
    ids=lambda t: type(t).__name__,
)
def test_stays_orthogonal_for_thousands_of_large_steps(t):
    """Random gradients and a large learning rate: parameters go far beyond where they began."""

    def loss(t, _, step):
        x = jax.random.normal(step.key, (3, 18))
        return RateDistortion((t.forward(x) * x[::-1]).sum(), jnp.float32(0))

    fitted = fit(t, loss, key=KEY, steps=3000, optimizer=optax.adam(0.5), chunk=3000)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(fitted.params)) > 5
    assert fitted.log.orthogonality.max() < 1e-5
    matrix = np.asarray(fitted.params.forward(jnp.eye(18)), np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(18), atol=1e-5)


def test_orthogonality_error_sees_a_departure():
    start = random_rotation(N, key=KEY).matrix
    assert orthogonality_error(cayley(N)) < 1e-6
    broken = jax.tree.unflatten(jax.tree.structure(cayley(N, start=hadamard(N))), [jnp.zeros((N, N)), 1.5 * start])
    assert orthogonality_error(broken) > 0.1
    assert orthogonality_error(hadamard(4)) == 0


def test_a_step_lowers_to_every_platform(lowers_everywhere):
    def gradient(t, x):
        return jax.grad(lambda t: noisy_loss(t, x, _Step()).bits)(t)

    lowers_everywhere(gradient, cayley(N), X)
    lowers_everywhere(gradient, Butterfly(jnp.zeros((2, num_pairs(N))), N), X)


class _Step:
    key, temperature = KEY, 0.5


def test_stacks_are_materialized_and_checked_like_their_parts(stack):
    ts, _ = stack
    moved = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), ts
    )
    deeper = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), moved)
    rotations = materialize({"heads": deeper})["heads"].matrix
    for i in range(4):
        alone = materialize(jax.tree.map(lambda leaf, i=i: leaf[i], moved))
        np.testing.assert_allclose(rotations[i // 2, i % 2], alone.matrix, atol=1e-6)
    start = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), ts)
    assert float(orthogonality_error(start)) < 1e-5
