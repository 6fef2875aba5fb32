r"""What an error in each coded matrix costs: one quadratic form per matrix, on one scale for the whole network.

To second order an error :math:`E` in the rows of a matrix raises the network's KL divergence by
:math:`\tfrac12 \sum_i g_i\, e_i H e_i^\top`, with the second moment :math:`H` of the layer's inputs and the Fisher
information :math:`g_i` of its outputs. As both are measured on one scale, matrices of all layers, the embedding and the
head compete for the same bits.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from occ_jax.quantization.product_form import product_of_sums

from ..calibration import Statistics
from ..roles import EMBEDDING, HEAD

EVEN_SHARE = 3 / 7
"""Share of all reading that every token has alike, whatever the text says: no token is free to be wrong. More than a
best guess of frequencies has, for a row that is as good as gone costs more than its second order. A share and no count,
as otherwise a short text would make all tokens alike."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    r"""The quadratic form :math:`\tfrac12 \sum_i g_i\, e_i H e_i^\top` of one matrix.

    Attributes:
        hessian: :math:`H`, one for all rows.
        rows: :math:`g`, one number for each row.
    """

    hessian: Float[np.ndarray, "d_in d_in"]
    rows: Float[np.ndarray, " d_out"]


def sensitivity_of(name: str, statistics: Statistics) -> Sensitivity:
    """Sensitivity of a matrix in the coordinates that ``statistics`` are in.

    Linear layers and a head of its own have theirs from calibration. An embedding row is read as often as its token
    occurs and then costs what an error at the entry of the residual stream costs; tied to the head, the same row is
    also an output direction, and the cost is the product that is nearest to the sum of both.

    Args:
        name: Hugging Face name of the matrix.
        statistics: with the output Fisher.
    """
    return _of_embedding(statistics) if name == EMBEDDING else _of_outputs(name, statistics)


def row_sensitivity(name: str, statistics: Statistics) -> Float[np.ndarray, " d_out"]:
    """The rows' part of the sensitivity of a linear layer or head, without the second moment of its inputs.

    Rows that never mattered on the text are kept from being thrown away altogether; where none did, all are alike.

    Raises:
        ValueError: the Fisher information is not finite; the message names the layer.
    """
    fisher = or_alike(_finite(f"the Fisher information of the outputs of {name}", statistics.fisher(name)))
    return np.maximum(fisher, 1e-3 * fisher.mean())


def or_alike(fisher: Float[np.ndarray, "*outputs"]) -> Float[np.ndarray, "*outputs"]:
    """Fisher information of a layer's outputs, or its diagonal; where nothing that they feed matters, all are alike.

    Example:
        >>> or_alike(np.zeros(2)), or_alike(np.zeros((2, 2)))
        (array([1., 1.]), array([[1., 0.],
               [0., 1.]]))
    """
    if fisher.any():
        return fisher
    return np.ones_like(fisher) if fisher.ndim == 1 else np.eye(len(fisher), dtype=fisher.dtype)


def _finite(what: str, found: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    found = np.asarray(found, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} is not finite: calibrate again")
    return found


def _of_outputs(name: str, statistics: Statistics) -> Sensitivity:
    return Sensitivity(hessian=statistics.error_moment(name), rows=row_sensitivity(name, statistics))


def _of_embedding(statistics: Statistics) -> Sensitivity:
    counted = statistics.token_counts / statistics.token_counts.sum()
    frequency = (1 - EVEN_SHARE) * counted + EVEN_SHARE / counted.size
    entry = statistics.fisher_matrix(EMBEDDING)
    if not statistics.config.tie_word_embeddings:
        return Sensitivity(hessian=entry, rows=frequency)
    head = _of_outputs(HEAD, statistics)
    costs = _finite(f"what errors of {EMBEDDING} cost", np.stack([entry, head.hessian]))
    form = product_of_sums(np.stack([frequency, head.rows]), costs)
    return Sensitivity(hessian=form.moment.astype(np.float32), rows=form.rows)
