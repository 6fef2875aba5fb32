"""A stored transform comes back as the one that `stored_transform` promised, or as a clean error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.codec import (
    FormatError,
    decode_indices,
    decode_tensors,
    decode_transform,
    encode_transform,
    open_container,
    stored_transform,
    write_container,
)
from occ_jax.transforms import DCT, Identity, random_hadamard, random_rotation

BASES = {
    "identity": Identity(),
    "dct": DCT(),
    "hadamard": random_hadamard(24, key=jax.random.key(0)),
    "rotation": random_rotation(24, key=jax.random.key(1)),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("matrix_bits", [3, 8])
def test_round_trip_through_a_file(name, matrix_bits, tmp_path):
    basis, x = BASES[name], jnp.linspace(-1, 1, 24)
    write_container(tmp_path / "x.occ.safetensors", {"b": encode_transform(basis, 24, matrix_bits=matrix_bits)})
    with open_container(tmp_path / "x.occ.safetensors") as container:
        read = decode_transform(container["b"])
    promised = stored_transform(basis, matrix_bits=matrix_bits)
    np.testing.assert_array_equal(read.forward(x), promised.forward(x))
    np.testing.assert_allclose(read.inverse(read.forward(x)), x, atol=1e-5)


def test_coarse_rotation_is_orthonormal_and_near():
    basis = BASES["rotation"]
    read = decode_transform(encode_transform(basis, 24, matrix_bits=3))
    matrix, exact = read.forward(jnp.eye(24)), basis.forward(jnp.eye(24))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-5)
    assert 0 < np.abs(matrix - exact).max() < 0.1


def test_a_transform_is_no_tensor():
    coded = encode_transform(BASES["hadamard"], 24)
    with pytest.raises(FormatError, match="no indices"):
        decode_indices([coded])
    with pytest.raises(FormatError, match="no indices"):
        decode_tensors([coded])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sections": {"transforms": b""}}, "damaged"),
        ({"sections": {"transforms": b"\x00" * 9}}, "damaged"),
        ({"shape": (25,)}, "damaged"),
        ({"spec": {"codec": "transform", "transform": {"name": "wavelet"}}}, "newer occ_jax"),
        ({"spec": {"codec": "transform", "transform": {"name": "uniform"}}}, "damaged"),
        ({"spec": {"codec": "raw", "dtype": "float32"}}, "no transform"),
    ],
)
def test_damage_is_one_sentence(change, message):
    coded = dataclasses.replace(encode_transform(BASES["hadamard"], 24), **change)
    with pytest.raises(FormatError, match=message):
        decode_transform(coded)
