"""Measures: how coefficients are distributed, what a reconstruction lost, and the limits of theory."""

from .distortion import hessian_weighted_error, mse, sqnr_db
from .distribution import gini, kurtosis, l2_norm, linf_rms_ratio, sparsity
from .spectrum import coding_gain, coding_gain_bits, entropy_rank, participation_ratio, stable_rank
from .theory import (
    UNIFORM_LOSS_BITS,
    ar1_coding_gain,
    distortion_at_rate,
    gaussian_distortion,
    gaussian_rate,
    rate_at_distortion,
    water_level,
)

__all__ = [
    "UNIFORM_LOSS_BITS",
    "ar1_coding_gain",
    "coding_gain",
    "coding_gain_bits",
    "distortion_at_rate",
    "entropy_rank",
    "gaussian_distortion",
    "gaussian_rate",
    "gini",
    "hessian_weighted_error",
    "kurtosis",
    "l2_norm",
    "linf_rms_ratio",
    "mse",
    "participation_ratio",
    "rate_at_distortion",
    "sparsity",
    "sqnr_db",
    "stable_rank",
    "water_level",
]
