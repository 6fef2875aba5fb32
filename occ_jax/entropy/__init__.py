"""Entropy models, integer frequency tables and the coders that turn indices into bytes."""

from occ_jax.entropy.rans import decode, decode_adaptive, encode, ideal_bits
from occ_jax.entropy.streams import Streams, compact, concatenate, pack, unpack
from occ_jax.entropy.tables import FreqTable, cost_bits, from_bytes, from_counts, from_samples, stack, to_bytes

__all__ = [
    "FreqTable",
    "Streams",
    "compact",
    "concatenate",
    "cost_bits",
    "decode",
    "decode_adaptive",
    "encode",
    "from_bytes",
    "from_counts",
    "from_samples",
    "ideal_bits",
    "pack",
    "stack",
    "to_bytes",
    "unpack",
]
