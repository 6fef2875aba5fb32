"""Learned coordinates: parametrised transforms, differentiable rates, and their training (which needs optax)."""

from occ_jax.learned.accumulation import mean_over_batch
from occ_jax.learned.control import gaussian_control
from occ_jax.learned.feedback import column_costs, regressions
from occ_jax.learned.fit import FitLog, Fitted, LossFn, Step, fit
from occ_jax.learned.integers import (
    Ranges,
    affine_reconstruction,
    fed_back_error,
    fed_back_reconstruction,
    find_ranges,
)
from occ_jax.learned.labels import FROZEN, TRAINED, default_labels
from occ_jax.learned.losses import (
    WATER_LMBDA,
    RateDistortion,
    code_length,
    fitted_model,
    relax,
    scale_field,
    scale_field_bits,
    water_filled,
)
from occ_jax.learned.orthogonal import (
    Cayley,
    Householder,
    cayley,
    householder,
    materialize,
    newton_schulz,
    orthogonality_error,
)
from occ_jax.learned.stored import load_transforms, save_transforms

__all__ = [
    "FROZEN",
    "TRAINED",
    "WATER_LMBDA",
    "Cayley",
    "FitLog",
    "Fitted",
    "Householder",
    "LossFn",
    "Ranges",
    "RateDistortion",
    "Step",
    "affine_reconstruction",
    "cayley",
    "code_length",
    "column_costs",
    "default_labels",
    "fed_back_error",
    "fed_back_reconstruction",
    "find_ranges",
    "fit",
    "fitted_model",
    "gaussian_control",
    "householder",
    "load_transforms",
    "materialize",
    "mean_over_batch",
    "newton_schulz",
    "orthogonality_error",
    "regressions",
    "relax",
    "save_transforms",
    "scale_field",
    "scale_field_bits",
    "water_filled",
]
