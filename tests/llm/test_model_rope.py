"""Rotary positions: closed forms, and the published definitions of the scalings written down once more, naively."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.config import ModelConfig, RopeScaling
from occ_llm.model.rope import rope_frequencies, rope_table, rotate

CONFIG = ModelConfig(
    family="llama",
    vocab_size=2,
    hidden_size=64,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    rope_theta=10_000.0,
    max_position=8192,
)
PLAIN = 10_000.0 ** (-np.arange(32) / 32)


def scaled(**fields) -> ModelConfig:
    return dataclasses.replace(CONFIG, rope_scaling=RopeScaling(original_max_position=2048, **fields))


def test_plain_frequencies_are_a_geometric_series():
    omega, factor = rope_frequencies(CONFIG, 1)
    np.testing.assert_allclose(omega, PLAIN, rtol=1e-6)
    assert omega[0] == 1
    assert factor == 1
    assert omega.dtype == np.float32


def test_linear_scaling_squeezes_positions():
    omega, factor = rope_frequencies(scaled(kind="linear", factor=4.0), 1)
    np.testing.assert_allclose(omega, PLAIN / 4, rtol=1e-6)
    assert factor == 1


@pytest.mark.parametrize("length", [1, 8192])
def test_dynamic_scaling_does_nothing_within_the_trained_length(length):
    omega, _ = rope_frequencies(scaled(kind="dynamic", factor=3.0), length)
    np.testing.assert_allclose(omega, PLAIN, rtol=1e-6)


def test_dynamic_scaling_keeps_the_fastest_and_slows_the_slowest_by_the_excess():
    omega, _ = rope_frequencies(scaled(kind="dynamic", factor=1.0), 3 * 8192)
    assert omega[0] == 1
    np.testing.assert_allclose(omega[-1], PLAIN[-1] / 3, rtol=1e-5)  # base^(dim-2)/dim grows by the stretch


def test_llama3_scaling_band_by_band():
    scaling = scaled(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    omega, factor = rope_frequencies(scaling, 1)
    assert factor == 1
    for plain, got in zip(PLAIN, omega, strict=True):
        turns = 2048 * plain / (2 * math.pi)
        if turns > 4:
            expected = plain
        elif turns < 1:
            expected = plain / 8
        else:
            smooth = (turns - 1) / 3
            expected = (1 - smooth) * plain / 8 + smooth * plain
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert ((omega < 0.99 * PLAIN) & (omega > 1.01 * PLAIN / 8)).any()


def test_yarn_interpolates_slow_frequencies_and_keeps_fast_ones():
    omega, factor = rope_frequencies(scaled(kind="yarn", factor=16.0), 1)
    np.testing.assert_allclose(omega[:5], PLAIN[:5], rtol=1e-6)
    np.testing.assert_allclose(omega[-5:], PLAIN[-5:] / 16, rtol=1e-6)
    ratio = omega / PLAIN
    assert (np.diff(ratio) < 1e-6).all()
    assert factor == pytest.approx(0.1 * math.log(16) + 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"factor": 1.0}, 1.0),
        ({"factor": 16.0, "attention_factor": 1.7}, 1.7),
        ({"factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"factor": 10.0, "mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(10) + 1) / (0.1 * math.log(10) + 1)),
    ],
)
def test_yarn_attention_factor(fields, expected):
    assert rope_frequencies(scaled(kind="yarn", **fields), 1)[1] == pytest.approx(expected)


@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_ramp_runs_between_the_two_numbers_of_turns(truncate):
    low, high = (64 * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(10_000)) for turns in (32, 1))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    ramp = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    omega, _ = rope_frequencies(scaled(kind="yarn", factor=16.0, truncate=truncate), 1)
    np.testing.assert_allclose(omega, PLAIN * (1 - ramp) + PLAIN / 16 * ramp, rtol=1e-5)


def test_yarn_with_an_empty_ramp_is_finite():
    omega, _ = rope_frequencies(scaled(kind="yarn", factor=2.0, beta_fast=1e9, beta_slow=1e9), 1)
    assert np.isfinite(omega).all()


def test_rotation_is_multiplication_by_a_complex_phase():
    positions = jnp.asarray([0, 1, 5, 4000])
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 64)).astype(np.float32)
    got = rotate(jnp.asarray(x), rope_table(CONFIG, positions, length=8192, dtype=jnp.dtype("float32")))
    z = x[..., :32] + 1j * x[..., 32:]
    phase = np.exp(1j * np.asarray(positions, np.float64)[:, None] * PLAIN)
    expected = z * phase[None, :, None, :]
    np.testing.assert_allclose(got[..., :32], expected.real, atol=2e-3)
    np.testing.assert_allclose(got[..., 32:], expected.imag, atol=2e-3)
    np.testing.assert_allclose(got[:, :3], np.concatenate([expected.real, expected.imag], -1)[:, :3], atol=1e-5)


def test_products_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 64)), jnp.float32) for _ in range(2))

    def product(t: int, s: int) -> float:
        tables = [rope_table(CONFIG, jnp.asarray([p]), length=8192, dtype=jnp.dtype("float32")) for p in (t, s)]
        return float(jnp.vdot(rotate(q, tables[0]), rotate(k, tables[1])))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-3)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
