"""Entropy models, integer frequency tables and the coders that turn indices into bytes."""

from occ_jax.entropy.empirical import empirical_entropy_bits, entropy_bits, histogram, value_counts
from occ_jax.entropy.fitting import fit_gaussian, fit_generalized_gaussian, fit_laplace
from occ_jax.entropy.huffman import HuffmanCode, canonical_codes, code_lengths, fit_huffman
from occ_jax.entropy.models import (
    Categorical,
    DiscretizedGaussian,
    DiscretizedLaplace,
    EntropyModel,
    GeneralizedGaussian,
)
from occ_jax.entropy.rans import decode, decode_adaptive, decode_lanes, encode, ideal_bits
from occ_jax.entropy.stacks import stack, stack_from_counts
from occ_jax.entropy.streams import Streams, compact, concatenate, pack, unpack
from occ_jax.entropy.tables import (
    FreqTable,
    cost_bits,
    from_bytes,
    from_counts,
    from_samples,
    normalize_counts,
    to_bytes,
)

__all__ = [
    "Categorical",
    "DiscretizedGaussian",
    "DiscretizedLaplace",
    "EntropyModel",
    "FreqTable",
    "GeneralizedGaussian",
    "HuffmanCode",
    "Streams",
    "canonical_codes",
    "code_lengths",
    "compact",
    "concatenate",
    "cost_bits",
    "decode",
    "decode_adaptive",
    "decode_lanes",
    "empirical_entropy_bits",
    "encode",
    "entropy_bits",
    "fit_gaussian",
    "fit_generalized_gaussian",
    "fit_huffman",
    "fit_laplace",
    "from_bytes",
    "from_counts",
    "from_samples",
    "histogram",
    "ideal_bits",
    "normalize_counts",
    "pack",
    "stack",
    "stack_from_counts",
    "to_bytes",
    "unpack",
    "value_counts",
]
