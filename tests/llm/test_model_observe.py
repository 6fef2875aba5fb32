"""Inputs of the linear layers, and gradients of their outputs, taken while scanning over the blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.config import ModelConfig
from occ_llm.model import (
    LINEARS,
    LanguageModel,
    attach_factor,
    attach_squared,
    block,
    final_norm,
    hidden_states,
    layer_windows,
    logits,
    observe,
    output_sizes,
    position_table,
    projection_rows,
    zero_probes,
    zero_squared_probes,
)

CONFIG = ModelConfig(
    family="llama",
    vocab_size=19,
    hidden_size=12,
    intermediate_size=20,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
)
TOKENS = jnp.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.random(CONFIG, key=jax.random.key(0))


def everything(taps):
    return taps


def test_observing_changes_nothing(model):
    hidden, taps = observe(model.graphdef, model.params, TOKENS, reduce=everything)
    np.testing.assert_allclose(hidden, hidden_states(model.graphdef, model.params, TOKENS), atol=1e-6)
    assert set(taps) == set(LINEARS)
    assert {name: x.shape for name, x in taps.items()} == {
        "qkv": (3, 2, 7, 12),
        "o": (3, 2, 7, 16),
        "gate_up": (3, 2, 7, 12),
        "down": (3, 2, 7, 20),
    }


def test_taps_are_the_inputs_the_residual_stream_is_made_from(model):
    """Rebuild the residual stream from the taps of the layers that write to it."""
    hidden, taps = observe(model.graphdef, model.params, TOKENS, reduce=everything)
    blocks = model.params["blocks"]
    x = np.asarray(model.params["embedding"])[TOKENS]
    for layer in range(3):
        normal = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + CONFIG.rms_norm_eps)
        np.testing.assert_allclose(taps["qkv"][layer], normal, atol=1e-5)
        x = x + taps["o"][layer] @ blocks["o"]["weight"][layer].T
        gate_up = taps["gate_up"][layer] @ blocks["gate_up"]["weight"][layer].T
        gate, up = gate_up[..., :20], gate_up[..., 20:]
        np.testing.assert_allclose(taps["down"][layer], gate / (1 + np.exp(-gate)) * up, atol=1e-5)
        x = x + taps["down"][layer] @ blocks["down"]["weight"][layer].T
    np.testing.assert_allclose(final_norm(CONFIG, model.params["norm"], jnp.asarray(x)), hidden, atol=1e-5)


def test_second_moments_are_reduced_layer_by_layer(model):
    def moments(taps):
        return {name: jnp.einsum("bti,btj->ij", x, x) for name, x in taps.items()}

    _, hessians = jax.jit(lambda p: observe(model.graphdef, p, TOKENS, reduce=moments))(model.params)
    _, taps = observe(model.graphdef, model.params, TOKENS, reduce=everything)
    for name, hessian in hessians.items():
        x = np.asarray(taps[name], np.float64).reshape(3, -1, taps[name].shape[-1])
        np.testing.assert_allclose(hessian, x.transpose(0, 2, 1) @ x, rtol=2e-4, atol=2e-4)


def gradient_of_loss(model, probes, **options):
    return jax.jit(jax.grad(lambda probes: loss_with(model, probes=probes, **options)))(probes)


def loss_with(model, **options):
    hidden, _ = observe(model.graphdef, model.params, TOKENS, reduce=lambda taps: None, **options)
    log_p = jax.nn.log_softmax(logits(model.params, hidden))
    return -jnp.sum(jnp.take_along_axis(log_p[:, :-1], TOKENS[:, 1:, None], -1))


@pytest.mark.parametrize("remat", [False, True])
def test_added_probes_receive_the_gradients_of_the_outputs(model, remat):
    probes = zero_probes(CONFIG, 2, 7, jnp.dtype("float32"))
    assert {n: p.shape[-1] for n, p in probes.items()} == output_sizes(CONFIG)
    gradients = gradient_of_loss(model, probes, remat=remat)
    loss, step = jax.jit(lambda probes: loss_with(model, probes=probes)), 1e-2
    entries = {"qkv": (1, 0, 3, 17), "o": (0, 1, 2, 5), "gate_up": (2, 1, 4, 33), "down": (1, 0, 0, 7)}
    for name, index in entries.items():
        up, down = (loss(probes | {name: probes[name].at[index].set(s)}) for s in (step, -step))
        np.testing.assert_allclose(gradients[name][index], (up - down) / (2 * step), rtol=0.05, atol=2e-3)


def test_gradients_of_outputs_give_gradients_of_weights(model):
    """dL/dW = sum over tokens of (dL/dy) x^T: taps and probes are those of the same layer."""
    probes = zero_probes(CONFIG, 2, 7, jnp.dtype("float32"))
    dy = gradient_of_loss(model, probes)
    _, taps = observe(model.graphdef, model.params, TOKENS, reduce=everything)

    def loss(params):
        return loss_with(LanguageModel(params, model.graphdef, CONFIG))

    gradients = jax.jit(jax.grad(loss))(model.params)["blocks"]
    for name in LINEARS:
        expected = jnp.einsum("lbti,lbtj->lij", dy[name], taps[name])
        np.testing.assert_allclose(gradients[name]["weight"], expected, atol=1e-4)


def test_squared_probes_receive_the_sums_of_squares(model):
    per_token = gradient_of_loss(model, zero_probes(CONFIG, 2, 7, jnp.dtype("float32")))
    squared = zero_squared_probes(CONFIG, jnp.dtype("float32"))
    got = gradient_of_loss(model, squared, attach=attach_squared, remat=True)
    for name, gradient in per_token.items():
        np.testing.assert_allclose(got[name], jnp.sum(gradient**2, axis=(1, 2)), rtol=1e-4, atol=1e-6)


def test_some_layers_may_go_without_a_probe(model):
    probes = {"down": zero_squared_probes(CONFIG, jnp.dtype("float32"))["down"]}
    got = gradient_of_loss(model, probes, attach=attach_squared)
    assert set(got) == {"down"}
    assert (got["down"] > 0).all()


def test_blocks_one_by_one_are_the_scanned_network(model):
    x = model.params["embedding"][TOKENS]
    table = position_table(CONFIG, 7, x.dtype)
    for layer in range(3):
        x, taps = block(CONFIG, jax.tree.map(lambda leaf, at=layer: leaf[at], model.params["blocks"]), x, table)
        assert taps["down"].shape == (2, 7, 20)
    hidden = final_norm(CONFIG, model.params["norm"], x)
    np.testing.assert_allclose(hidden, hidden_states(model.graphdef, model.params, TOKENS), atol=1e-5)


def test_windows_are_none_when_no_text_is_longer():
    windowed = dataclasses.replace(CONFIG, sliding_window=4, sliding_layers=(True, False, True))
    assert layer_windows(CONFIG, 100) is None
    assert layer_windows(windowed, 4) is None
    np.testing.assert_array_equal(layer_windows(windowed, 9), [4, 9, 4])


def test_rows_of_projections_tile_the_stacked_outputs():
    rows = projection_rows(CONFIG)
    assert list(rows) == [projection for projections in LINEARS.values() for projection in projections]
    for linear, size in output_sizes(CONFIG).items():
        covered = [i for name, where in rows.values() if name == linear for i in range(where.start, where.stop)]
        assert covered == list(range(size))


def test_a_factor_for_each_output_has_the_gradient_of_the_product():
    rng = np.random.default_rng(0)
    operands = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 3, 5), (5,)))

    def value_and_gradients(attach):
        return jax.value_and_grad(lambda y, s: jnp.sum(jnp.sin(attach(y, s))), argnums=(0, 1))(*operands)

    got, expected = map(value_and_gradients, (attach_factor, lambda y, s: y * jnp.exp(s)[None, None]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
