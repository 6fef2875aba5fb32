"""What a list of parameters looks like, and how sensitive the function is to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax.metrics import kurtosis, linf_rms_ratio, participation_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """How coefficients are distributed.

    Args:
        kurtosis: of all coefficients of all draws.
        linf_rms: largest over root mean square, mean over draws.
        effective_dimension: participation ratio of the mean energies of the coordinates, over their number.
    """

    kurtosis: float
    linf_rms: float
    effective_dimension: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The spectrum of a sensitivity.

    Args:
        spectrum: eigenvalues over their sum, descending, at most 64 of them.
        effective_dimension: participation ratio of the eigenvalues, over their number.
        axis_alignment: share of the squared matrix that stands on its diagonal; 1 when axes are eigenvectors.
    """

    spectrum: tuple[float, ...]
    effective_dimension: float
    axis_alignment: float


def describe_coefficients(y: Float[np.ndarray, "draws axes"]) -> Distribution:
    """Statistics of coefficients; columns are coordinates.

    Example:
        >>> describe_coefficients(np.array([[2.0, 0.0], [-2.0, 0.0]]))
        Distribution(kurtosis=2.0, linf_rms=1.414..., effective_dimension=0.5)
    """
    tails, crest, dimension = (float(x) for x in _statistics(jnp.asarray(y, jnp.float32)))
    return Distribution(kurtosis=tails, linf_rms=crest, effective_dimension=dimension / y.shape[1])


@jax.jit  # one compilation for each size
def _statistics(y: Float[Array, "draws axes"]) -> tuple[Array, Array, Array]:
    energies = jnp.square(y).mean(0)
    return kurtosis(y), linf_rms_ratio(y, axis=-1).mean(), participation_ratio(energies)


def describe_sensitivity(hessian: Float[np.ndarray, "size size"]) -> Sensitivity:
    """Spectrum and axis alignment of a sensitivity.

    Example:
        >>> describe_sensitivity(np.diag([3.0, 1.0]))
        Sensitivity(spectrum=(0.75, 0.25), effective_dimension=0.8, axis_alignment=1.0)
    """
    values = np.maximum(np.linalg.eigvalsh(hessian)[::-1], 0)
    shares = values / values.sum()
    return Sensitivity(
        spectrum=tuple(float(f"{share:.4g}") for share in shares[:64]),
        effective_dimension=float(1 / np.square(shares).sum()) / len(shares),
        axis_alignment=float(np.square(np.diag(hessian)).sum() / np.square(hessian).sum()),
    )
