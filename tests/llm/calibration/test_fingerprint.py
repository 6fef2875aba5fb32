"""Digests that change with everything that changes the statistics, and with nothing else."""

import dataclasses

import jax
import numpy as np
import pytest
from occ_llm.calibration import Fingerprint, fingerprint
from occ_llm.calibration.fingerprint import model_digest, settings_digest, text_digest
from occ_llm.errors import OccError

KEY = jax.random.key(3)


def test_every_tensor_counts(config, naive):
    weights = naive.weights(config, 0)
    digests = {model_digest(config, weights)}
    for name, w in weights.items():
        changed = w.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        digests.add(model_digest(config, weights | {name: changed}))
    assert len(digests) == 1 + len(weights)


def test_the_architecture_counts(config, naive):
    weights = naive.weights(config, 0)
    changes = ({"rope_theta": 5.0}, {"rms_norm_eps": 1e-5}, {"family": "mistral"})
    configs = [config, *(dataclasses.replace(config, **change) for change in changes)]
    assert len({model_digest(c, weights) for c in configs}) == len(configs)


def test_order_and_memory_layout_of_tensors_do_not_count(config, naive):
    weights = naive.weights(config, 0)
    other = {name: np.asfortranarray(weights[name]) for name in reversed(weights)}
    assert model_digest(config, weights) == model_digest(config, other)


def test_names_are_part_of_the_model(config, naive):
    weights = naive.weights(config, 0)
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    swapped = weights | {gate: weights[up], up: weights[gate]}
    assert model_digest(config, weights) != model_digest(config, swapped)


def test_tokens_and_windows_count(config, naive):
    windows = naive.windows(config, 4, 6)
    variants = [windows, windows[:3], windows[:, :5], windows.reshape(2, 12), windows[::-1], windows + 1]
    assert len({text_digest(v) for v in variants}) == len(variants)
    assert text_digest(windows) == text_digest(windows.astype(np.int64))


def test_settings_count():
    base = {"key": KEY, "fisher": True, "dtype": np.float32}
    changes = ({}, {"key": jax.random.key(4)}, {"fisher": False}, {"dtype": np.float64})
    assert len({settings_digest(**(base | change)) for change in changes}) == len(changes)
    assert settings_digest(**base) == settings_digest(**base)


def test_the_digest_of_all_three_separates_them():
    base = Fingerprint(model="a", text="b", settings="c")
    others = [Fingerprint(model="b", text="a", settings="c"), Fingerprint(model="a", text="c", settings="b")]
    assert len({base.digest, *(other.digest for other in others)}) == 3
    assert base.differences(base) == ()
    assert base.differences(others[0]) == ("model", "text")


@pytest.mark.parametrize(
    ("field", "words"),
    [("model", "another model"), ("text", "another text"), ("settings", "other calibration settings")],
)
def test_the_error_names_the_difference_and_the_file(config, naive, field, words):
    base = fingerprint(config, naive.weights(config, 0), naive.windows(config, 2, 3), key=KEY)
    base.require(base, "a.safetensors")
    with pytest.raises(OccError, match=rf"^a\.safetensors: these statistics belong to {words}.*; calibrate again"):
        base.require(dataclasses.replace(base, **{field: "0"}), "a.safetensors")
