"""Files: coded tensors, the container that holds them, and the ledger of its bytes."""

from occ_jax.codec.basis import decode_transform, encode_transform
from occ_jax.codec.coding import (
    decode_indices,
    decode_tensor,
    decode_tensors,
    encode_tensor,
    scalar_codebook,
)
from occ_jax.codec.container import Container, open_container, write_container
from occ_jax.codec.errors import FormatError
from occ_jax.codec.integers import encode_affine
from occ_jax.codec.lattice import Lattice, encode_lattice, encode_lattices, stored_offset, with_row_factors
from occ_jax.codec.ledger import ledger, tensor_ledger
from occ_jax.codec.levels import Levels
from occ_jax.codec.raw import encode_raw
from occ_jax.codec.spec import CodedTransform, code_transform, from_spec, stored_transform, to_spec
from occ_jax.codec.tensor import CodedTensor

__all__ = [
    "CodedTensor",
    "CodedTransform",
    "Container",
    "FormatError",
    "Lattice",
    "Levels",
    "code_transform",
    "decode_indices",
    "decode_tensor",
    "decode_tensors",
    "decode_transform",
    "encode_affine",
    "encode_lattice",
    "encode_lattices",
    "encode_raw",
    "encode_tensor",
    "encode_transform",
    "from_spec",
    "ledger",
    "open_container",
    "scalar_codebook",
    "stored_offset",
    "stored_transform",
    "tensor_ledger",
    "to_spec",
    "with_row_factors",
    "write_container",
]
