"""One block, observed and differentiated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import blocks, calibrate, statistic_shapes
from occ_llm.calibration.statistics import WEIGHTED_INPUTS
from occ_llm.config import ModelConfig
from occ_llm.folding import fold_norms
from occ_llm.model import block, block_params, position_table
from occ_llm.roles import INPUT_OF, INPUTS


def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Short name -> shape of every statistic of one block."""
    shapes = {}
    for name, shape in statistic_shapes(config).items():
        if name.startswith("model.layers.0."):
            short = name.split(".")[-2].removesuffix("_proj")
            shapes[short] = shape
    return shapes


@pytest.fixture
def params(config, naive):
    return jax.tree.map(jnp.asarray, block_params(config, fold_norms(config, naive.weights(config, 0)), 0, np.float32))


@pytest.fixture
def stream(config):
    x, g = np.random.default_rng(0).standard_normal((2, 2, 7, config.hidden_size)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(g)


def outputs(config):
    """Shapes of what is summed on the way back, block by block."""
    plain = [kind for kind, tap in INPUT_OF.items() if tap not in WEIGHTED_INPUTS]
    return {name: shape for name, shape in block_shapes(config).items() if name in plain}


def test_forward_and_observed_outputs_are_the_block(config, params, stream):
    x, _ = stream
    expected, _ = block(config, params, x, position_table(config, 7, x.dtype))
    sums = blocks.empty_sums({n: s for n, s in block_shapes(config).items() if n in INPUTS}, jnp.float32)
    np.testing.assert_allclose(blocks.advance(config, None, params, x), expected, atol=1e-5)
    sums, observed = blocks.observe(config, None, params, sums, x)
    np.testing.assert_allclose(observed, expected, atol=1e-5)
    assert set(sums) == set(INPUTS)


def test_the_gradient_that_goes_on_is_that_of_the_block(config, params, stream):
    x, g = stream

    def f(x):
        return jnp.sum(g * block(config, params, x, position_table(config, 7, x.dtype))[0])

    expected = jax.grad(f)(x)
    sums = blocks.empty_sums(outputs(config), jnp.float32)
    _, found, tokens = blocks.differentiate(config, None, params, sums, x, jnp.array(g))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for tap, seen in tokens.items():
        np.testing.assert_allclose(jnp.mean(seen.inputs**2, -1), 1, rtol=1e-4, err_msg="of the stream, normalised")
        assert set(seen.gradients) == {kind for kind, read in INPUT_OF.items() if read == tap}


def test_sums_add_up(config, params, stream):
    x, g = stream
    once = blocks.empty_sums(outputs(config), jnp.float32)
    once, _, _ = blocks.differentiate(config, None, params, once, x, jnp.array(g))
    first = {name: s.mean(1) for name, s in once.items()}
    twice, _, _ = blocks.differentiate(config, None, params, once, x, jnp.array(g))
    for name, value in first.items():
        np.testing.assert_allclose(twice[name].mean(2), value, rtol=1e-5, atol=1e-6 * np.abs(value).max())


def test_zero_gradient_gives_zero_fisher(config, params, stream):
    x, g = stream
    sums = blocks.empty_sums(outputs(config), jnp.float32)
    sums, found, tokens = blocks.differentiate(config, None, params, sums, x, jnp.zeros_like(g))
    assert not np.any(found)
    assert not any(np.any(total.mean(1)) for total in sums.values())
    assert not any(np.any(gradient) for seen in tokens.values() for gradient in seen.gradients.values())


def test_no_weight_gradient_is_formed(config):
    """Backward with respect to activations is one product per linear layer, with respect to weights it would be two."""
    wide = ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=256,
        intermediate_size=512,
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
    )
    shapes = {"qkv": (768, 256), "o": (256, 256), "gate_up": (1024, 256), "down": (256, 512)}
    params: dict = {name: {"weight": jnp.zeros(shape)} for name, shape in shapes.items()}
    params |= {name: {"gain": jnp.ones(256)} for name in ("attention_norm", "mlp_norm")}
    x = jnp.zeros((1, 64, 256))
    sums = blocks.empty_sums(outputs(wide), jnp.float32)
    cost = blocks.differentiate.lower(wide, None, params, sums, x, x).compile().cost_analysis()
    linear = 2 * 64 * sum(a * b for a, b in shapes.values())
    squares = 2 * 64 * sum(s[0] * s[1] for s in outputs(wide).values() if len(s) == 2)
    # Recomputed once and sent back once; elementwise work and attention are small. Weight gradients would add one.
    assert cost["flops"] < 2.6 * linear + squares


def test_memory_on_the_way_back_does_not_grow_with_depth(config, naive):
    """Live arrays at every step: the streams, one block's weights, one block's sums."""

    def live(num_layers: int) -> int:
        sizes = []

        def progress(steps):
            for step in steps:
                yield step
                sizes.append(sum(x.nbytes for x in jax.live_arrays()))

        deep = dataclasses.replace(config, num_layers=num_layers)
        before = sum(x.nbytes for x in jax.live_arrays())
        calibrate(deep, naive.weights(deep, 0), naive.windows(deep, 3, 9), key=jax.random.key(0), progress=progress)
        return max(sizes) - before

    assert live(12) <= 1.1 * live(3)


def test_blocks_lower_everywhere(lowers_everywhere, config, params, stream):
    x, g = stream
    sums = blocks.empty_sums(outputs(config), jnp.float32)
    inputs = blocks.empty_sums({name: block_shapes(config)[name] for name in INPUTS}, jnp.float32)
    lowers_everywhere(functools.partial(blocks.advance, config, None), params, x)
    lowers_everywhere(functools.partial(blocks.observe, config, None), params, inputs, x)
    lowers_everywhere(functools.partial(blocks.differentiate, config, None), params, sums, x, g)
    norm, head = {"gain": jnp.ones(config.hidden_size)}, jnp.ones((config.vocab_size, config.hidden_size))
    totals, bits = blocks.empty_sums({"fisher": (config.vocab_size,)}, jnp.float32), jnp.ones(x.shape[:2], jnp.uint32)
    lowers_everywhere(functools.partial(blocks.differentiate_head, config), norm, head, totals, x, bits)
