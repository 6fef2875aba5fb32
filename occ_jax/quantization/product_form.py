r"""One product :math:`g_i H` in the place of a quadratic form for every row.

What an error in row :math:`i` costs is a form of its own, :math:`e_i F_i e_i^\top`. Steps and feedback want one matrix
for all rows and one number for each, :math:`F_i \approx g_i H`: errors made with them have the covariance
:math:`\Sigma_i \propto (g_i H)^{-1}`. They cost :math:`\sum_i \operatorname{tr}(F_i \Sigma_i)` and leave a rate of
:math:`-\tfrac12 \sum_i \log \det \Sigma_i`, so the product that costs least at a given rate is the one of least

.. math::

    \sum_i \operatorname{tr}\!\big(F_i (g_i H)^{-1}\big) + \log \det (g_i H) ,

Stein's loss. Its minimum has :math:`H = \operatorname{mean}_i F_i / g_i` and
:math:`g_i = \operatorname{tr}(F_i H^{-1}) / n`, two conditions that are met in turn until they agree. A product that
matches traces instead lets the loudest direction of a form speak for all others, which is dear where the forms differ.

References:
    James & Stein, Estimation with quadratic loss, Proc. 4th Berkeley Symposium, 1961, section 5.
    Dutilleul, The MLE algorithm for the matrix normal distribution, J. Stat. Comput. Simul. 64, 1999 (in turn).
    Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, arXiv:1503.05671.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64
from scipy.linalg import cho_factor, cho_solve

from occ_jax.quantization.hessian import DAMPING, damp

_TOLERANCE = 1e-5
_MOST_ROUNDS = 200


class ProductForm(NamedTuple):
    """The quadratic forms ``rows[i] * moment``.

    Attributes:
        rows: :math:`g`.
        moment: :math:`H`.
    """

    rows: Float64[np.ndarray, " rows"]
    moment: Float64[np.ndarray, "n n"]


def product_of_sums(
    rows: Float[np.ndarray, "forms rows"], moments: Float[np.ndarray, "forms n n"], *, damping: float = DAMPING
) -> ProductForm:
    r"""The product nearest to :math:`F_i = \sum_k a^{(k)}_i A^{(k)}`, in float64 on the host.

    Args:
        rows: :math:`a^{(k)}`, not negative; no row is zero in all of them.
        moments: :math:`A^{(k)}`, positive semidefinite and none of them zero.
        damping: times the mean of its diagonal, what is added to the diagonal of every :math:`A^{(k)}`.

    Raises:
        ValueError: a row costs nothing in every form.

    Example:
        >>> moments = np.stack([np.eye(2), np.diag([1.0, 4.0])])
        >>> form = product_of_sums(np.array([[1.0, 2.0], [3.0, 6.0]]), moments, damping=0.0)
        >>> np.round(form.rows[:, None] * np.diagonal(form.moment), 4)
        array([[ 4., 13.],
               [ 8., 26.]])
    """
    rows, moments = np.asarray(rows, np.float64), np.array(moments, np.float64)
    if not (rows.sum(0) > 0).all():
        raise ValueError(f"row {int(np.argmin(rows.sum(0)))} costs nothing in any form: give each row some weight")
    width = moments.shape[-1]
    for moment in moments:
        damp(moment, damping)
    g = np.einsum("ki,kjj->i", rows, moments) / width
    for _ in range(_MOST_ROUNDS):
        moment = np.einsum("k,kij->ij", (rows / g).mean(1), moments)
        factor = cho_factor(moment)
        traces = np.array([np.trace(cho_solve(factor, m)) for m in moments]) / width
        g, before = traces @ rows, g
        if np.abs(np.log(g / before)).max() < _TOLERANCE:
            break
    return ProductForm(g, np.einsum("k,kij->ij", (rows / g).mean(1), moments))


@jax.jit
def token_weights(
    gradients: Float[Array, "tokens rows"], rows: Float[Array, " rows"], largest: float | Float[Array, ""]
) -> Float[Array, " tokens"]:
    r"""How much each token counts in :math:`H`: :math:`s_t = \operatorname{mean}_i d_{ti}^2 / g_i`, with a bound.

    With :math:`F_i = \mathbb{E}[d_i^2\, x x^\top]` the first condition is :math:`H = \mathbb{E}[s\, x x^\top]`.

    Args:
        gradients: :math:`d`, of the outputs.
        rows: :math:`g`, positive.
        largest: weight of a token at most.

    Example:
        >>> gradients = jnp.array([[1.0, 2.0], [6.0, 8.0]])
        >>> print(token_weights(gradients, jnp.array([1.0, 4.0]), 10.0))
        [ 1. 10.]
    """
    return jnp.minimum(jnp.mean(jnp.square(gradients) / rows[None, :], axis=-1), largest)


@jax.jit
def token_leverages(inputs: Float[Array, "tokens n"], upper: Float[Array, "n n"]) -> Float[Array, " tokens"]:
    r"""How much each token counts in :math:`g`: :math:`\ell_t = x_t^\top H^{-1} x_t / n`, :math:`H^{-1} = U^\top U`.

    The second condition is :math:`g_i = \mathbb{E}[\ell\, d_i^2]`.

    Args:
        inputs: :math:`x`.
        upper: :math:`U`.

    Example:
        >>> print(token_leverages(jnp.array([[3.0, 4.0]]), jnp.eye(2)))
        [12.5]
    """
    moved = jnp.matmul(inputs, upper.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(jnp.square(moved), axis=-1)
