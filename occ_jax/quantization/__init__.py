"""Quantizers: real coefficients to integer indices and back."""

from occ_jax.quantization.affine import Affine, fit_affine
from occ_jax.quantization.base import Quantizer
from occ_jax.quantization.deadzone import DeadZone, rdo_round
from occ_jax.quantization.uniform import Uniform

__all__ = ["Affine", "DeadZone", "Quantizer", "Uniform", "fit_affine", "rdo_round"]
