"""Quantizers: real coefficients to integer indices and back."""

from occ_jax.quantization.affine import Affine, fit_affine
from occ_jax.quantization.base import Quantizer
from occ_jax.quantization.codebook import Codebook, reconstruct, search_tables
from occ_jax.quantization.deadzone import DeadZone, rdo_round
from occ_jax.quantization.feedback import FeedbackResult, quantize_with_feedback
from occ_jax.quantization.hessian import HessianFactor, prepare_hessian
from occ_jax.quantization.output_feedback import OutputFactor, prepare_outputs
from occ_jax.quantization.scales import fit_class_levels, scale_classes
from occ_jax.quantization.trellis_coding import decode_indices, encode_indices
from occ_jax.quantization.uniform import Uniform

__all__ = [
    "Affine",
    "Codebook",
    "DeadZone",
    "FeedbackResult",
    "HessianFactor",
    "OutputFactor",
    "Quantizer",
    "Uniform",
    "decode_indices",
    "encode_indices",
    "fit_affine",
    "fit_class_levels",
    "prepare_hessian",
    "prepare_outputs",
    "quantize_with_feedback",
    "rdo_round",
    "reconstruct",
    "scale_classes",
    "search_tables",
]
