"""What each block may have of its own: every weight changes, no logit does, and the statistics follow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import calibrate, conjugate, moved_diagonal, rotate_statistics
from occ_llm.coordinates import BlockCoordinates, Coordinates, dense_network, moves, rotate
from occ_llm.errors import OccError
from occ_llm.folding import fold_norms
from occ_llm.model import LanguageModel
from occ_llm.roles import linear_name

from occ_jax.transforms import (
    BlockDiagonal,
    Identity,
    PlaneRotation,
    Rotation,
    Scaling,
    block_diagonal,
    butterfly,
    chain,
    random_hadamard,
    random_rotation,
)

FAMILIES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "qwen2": {"family": "qwen2", "attention_bias": True},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "biases everywhere": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
    "one group": {"num_kv_heads": 1},
    "no groups": {"num_kv_heads": 4},
}
PLACES = {
    "values": "vo",
    "value rotations": "vo",
    "value factors": "vo",
    "keys": "qk",
    "key rotations": "qk",
    "key factors": "qk",
    "units": ("up", "down"),
}
LINKS = {
    "value rotations": ("values", 0),
    "value factors": ("values", 1),
    "key rotations": ("keys", 0),
    "key factors": ("keys", 1),
}
"""What a block has of its own, and one link of the chain that it is there."""


def drawn(config, layer: int, dtype=jnp.float32) -> BlockCoordinates:
    """A transform of every kind, another for every layer and head."""
    rng = np.random.default_rng(layer)

    def vector(*shape):
        return jnp.asarray(rng.normal(0, 0.7, shape), dtype)

    def turned(n):
        return Rotation(jnp.linalg.qr(vector(n, n))[0])

    size, half = config.head_dim, config.head_dim // 2
    heads = range(config.num_kv_heads)
    values = [chain(turned(size), Scaling(vector(size))) for _ in heads]
    keys = [chain(PlaneRotation(vector(half), size), Scaling(jnp.tile(vector(half), 2))) for _ in heads]
    return BlockCoordinates(
        values=block_diagonal(values, size),
        keys=Identity() if config.qk_norm else block_diagonal(keys, size),
        units=Scaling(vector(config.intermediate_size)),
    )


def everything(config, dtype=jnp.float32) -> Coordinates:
    rng = np.random.default_rng(9)
    n, size = config.hidden_size, config.head_dim
    residual, values = (Rotation(jnp.linalg.qr(jnp.asarray(rng.normal(size=(k, k)), dtype))[0]) for k in (n, size))
    blocks = tuple(drawn(config, layer, dtype) for layer in range(config.num_layers))
    return Coordinates(residual, values, Identity(), blocks)


def only(config, place: str, dtype) -> Coordinates:
    field, link = LINKS.get(place, (place, None))

    def kept(block: BlockCoordinates) -> BlockCoordinates:
        whole = getattr(block, field)
        one = whole if link is None else BlockDiagonal(whole.transform.transforms[link], whole.size)
        return BlockCoordinates(**{field: one})

    blocks = tuple(map(kept, everything(config, dtype).blocks))
    return Coordinates(Identity(), Identity(), Identity(), blocks)


def logits(config, weights, tokens):
    return np.asarray(LanguageModel.from_weights(config, weights, jnp.float64)(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_to_ten_digits(family, toy_config, toy_weights, toy_tokens):
    with jax.enable_x64(True):
        config, tokens = toy_config(**FAMILIES[family]), toy_tokens[:1, :32]
        weights = toy_weights(config, np.float64)
        expected, folded = logits(config, weights, tokens), fold_norms(config, weights)
        moved = rotate(config, folded, everything(config, jnp.float64))
        found = logits(*dense_network(config, moved), tokens)
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["tied", "untied"])
def test_each_placement_by_itself(place, family, toy_config, toy_weights, toy_tokens):
    with jax.enable_x64(True):
        config, tokens = toy_config(**FAMILIES[family]), toy_tokens[:1, :32]
        weights = toy_weights(config, np.float64)
        folded = fold_norms(config, weights)
        moved = rotate(config, folded, only(config, place, jnp.float64))
        expected = logits(config, weights, tokens)
        np.testing.assert_allclose(logits(config, moved, tokens), expected, atol=1e-10 * np.abs(expected).max())
        for layer in range(config.num_layers):
            for kind in ("q", "k", "v", "o", "gate", "up", "down"):
                name = linear_name(layer, kind)
                changed = not np.allclose(moved[name], folded[name], rtol=0.05)
                assert changed == (kind in PLACES[place]), name


def test_one_key_value_head_leaves_the_others_alone(toy_config, toy_weights):
    config = toy_config()
    folded = fold_norms(config, toy_weights(config))
    size, group = config.head_dim, config.num_heads // config.num_kv_heads
    second = [Rotation(jnp.eye(size)), random_rotation(size, key=jax.random.key(0))]
    blocks = (BlockCoordinates(), BlockCoordinates(values=block_diagonal(second, size)))
    moved = rotate(config, folded, Coordinates(Identity(), Identity(), Identity(), blocks))
    v, o = (linear_name(1, kind) for kind in "vo")
    np.testing.assert_allclose(moved[v][:size], folded[v][:size], atol=1e-6)
    np.testing.assert_allclose(moved[o][:, : group * size], folded[o][:, : group * size], atol=1e-6)
    assert np.abs(moved[o][:, group * size :] - folded[o][:, group * size :]).max() > 0.01
    first = linear_name(0, "v")
    stays = moves(config, first, Coordinates(Identity(), Identity(), Identity(), blocks))
    assert [type(step) for step in stays] == [Identity, Identity]


def test_normalised_keys_cannot_move(toy_config, toy_weights):
    config = toy_config(**FAMILIES["qwen3"])
    planes = block_diagonal([PlaneRotation(jnp.ones(6), 12)] * 2, 12)
    coordinates = Coordinates(Identity(), Identity(), Identity(), (BlockCoordinates(keys=planes),) * 2)
    with pytest.raises(OccError, match=r"qwen3.*normalised"):
        rotate(config, fold_norms(config, toy_weights(config)), coordinates)


@pytest.mark.parametrize("family", ["tied", "biases everywhere"])
def test_statistics_follow(family, toy_config, toy_weights, toy_tokens):
    """Calibrating the moved network gives what moving the statistics gives.

    The weight of a token is a mean over single outputs, so where these turn it is another one, though not by much.
    """
    config = toy_config(**FAMILIES[family])
    weights, coordinates, key = toy_weights(config), everything(config), jax.random.key(3)
    # The residual stream stays: with a tied head it asks for a head of its own.
    coordinates = dataclasses.replace(coordinates, residual=Identity())
    windows = toy_tokens[:2, :32]
    network = dict(rotate(config, fold_norms(config, weights), coordinates))
    expected = calibrate(config, network, windows, key=key)
    found = rotate_statistics(calibrate(config, weights, windows, key=key), coordinates)
    assert set(found.tensors) == set(expected.tensors)
    for name, value in expected.tensors.items():
        turned = "attention_in.weighted" in name or any(f"{kind}_proj.fisher" in name for kind in "qkv")
        most = (0.1 if turned else 2e-4) * np.abs(value).max()
        np.testing.assert_allclose(found.tensors[name], value, rtol=0, atol=most, err_msg=name)


def test_stored_transforms_of_one_layer_follow_the_shared_one(toy, toy_statistics):
    config = toy.config
    shared = random_hadamard(config.intermediate_size, key=jax.random.key(1))
    own = butterfly(config.intermediate_size, sweeps=1)
    own = dataclasses.replace(own, angles=jnp.full_like(own.angles, 0.3))
    blocks = (BlockCoordinates(), BlockCoordinates(hidden=own))
    coordinates = Coordinates(Identity(), Identity(), shared, blocks)
    moved = rotate_statistics(toy_statistics, coordinates)
    name = linear_name(1, "down")
    h = jnp.asarray(toy_statistics.hessian(name))
    expected = conjugate(own, conjugate(shared, h))
    np.testing.assert_allclose(moved.hessian(name), expected, atol=1e-4 * float(jnp.abs(expected).max()))
    stretched = (BlockCoordinates(hidden=Scaling(jnp.ones(config.intermediate_size))),) * 2
    with pytest.raises(ValueError, match="inputs of a matrix is not orthonormal"):
        rotate_statistics(toy_statistics, dataclasses.replace(coordinates, blocks=stretched))


def test_the_moved_diagonal_is_that_of_the_moved_matrix():
    rng = np.random.default_rng(0)
    moment = rng.standard_normal((12, 12)).astype(np.float32)
    moment = jnp.asarray(moment @ moment.T)
    transform = chain(random_rotation(12, key=jax.random.key(2)), Scaling(jnp.linspace(-1, 1, 12)))
    expected = jnp.diagonal(conjugate(transform, moment))
    np.testing.assert_allclose(moved_diagonal(transform, moment), expected, rtol=1e-4)
    scaling = Scaling(jnp.linspace(-1, 1, 12))
    diagonal = jnp.diagonal(moment)
    np.testing.assert_allclose(moved_diagonal(scaling, diagonal), jnp.diagonal(conjugate(scaling, moment)), rtol=1e-5)
