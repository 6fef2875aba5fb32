r"""The mean of a loss over a batch, with the memory of one of its elements.

.. math::

    L(\theta) = \frac1B \sum_{b=1}^{B} \ell(\theta, x_b)

What a loop keeps for its way back grows with its rounds. Here the gradient of every element is taken while its
activations are there, and only the sum stays (gradient accumulation). Whatever :math:`\theta` is made of, such as
matrices that were moved and quantized, is made once for the whole batch, and the way back through it is gone once.
Several devices each take their part of the batch, and meet once, to add up what they have found (data parallelism).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from occ_jax.learned.split import Split


def mean_over_batch(
    loss: Callable[[Any, Any, Any], Float[Array, ""]],
    params: Any,
    constants: Any,
    batch: Any,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Mean of ``loss(params, constants, element)`` over the elements of a batch.

    Differentiable in the floats of ``params``, once and in reverse mode; the gradients of all else are zero.

    Args:
        loss: a scalar; must not close over traced values.
        params: any tree.
        constants: what else the loss reads.
        batch: a tree whose leaves share their first axis.
        mesh: devices, along one axis, that share the batch in equal parts; the result does not depend on their number
            but for rounding. Without it, wherever the arrays are.

    Example:
        >>> def loss(w, scale, x):
        ...     return scale * jnp.square(x @ w)
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
        >>> jax.grad(lambda w: mean_over_batch(loss, w, 0.5, x))(jnp.ones(2)).tolist()
        [0.5, 2.0]
    """
    leaves, structure = jax.tree.flatten(params)
    split = Split(structure, tuple(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves))
    floats, rest = split.apart(leaves)

    def of_floats(floats: list[Array], others: tuple[list[Array], Any], element: Any) -> Array:
        rest, constants = others
        return loss(split.merge(floats, rest), constants, element)

    return _mean(of_floats, mesh, floats, (rest, constants), batch)


def _summed(measure: Callable, mesh: Mesh | None, floats: list[Array], others: Any, batch: Any) -> Any:
    """Sum of what ``measure`` makes of the elements, one after the other on every device."""

    def of_mine(floats: list[Array], others: Any, batch: Any) -> Any:
        def add(sums: Any, element: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, measure(floats, others, element)), None

        one = jax.eval_shape(measure, floats, others, jax.tree.map(lambda x: x[0], batch))
        sums, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, one), batch)
        return sums if mesh is None else lax.psum(sums, mesh.axis_names)

    if mesh is None:
        return of_mine(floats, others, batch)
    everywhere, by_element = PartitionSpec(), PartitionSpec(mesh.axis_names)
    specs = (everywhere, everywhere, by_element)
    shared = jax.shard_map(of_mine, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
    return shared(floats, others, batch)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(loss: Callable, mesh: Mesh | None, floats: list[Array], others: Any, batch: Any) -> Array:
    size = len(jax.tree.leaves(batch)[0])
    return _summed(lambda *given: loss(*given) / size, mesh, floats, others, batch)


def _with_gradient(
    loss: Callable, mesh: Mesh | None, floats: list[Array], others: Any, batch: Any
) -> tuple[Array, list[Array]]:
    size = len(jax.tree.leaves(batch)[0])
    return _summed(jax.value_and_grad(lambda *given: loss(*given) / size), mesh, floats, others, batch)


def _backward(
    loss: Callable, mesh: Mesh | None, gradients: list[Array], cotangent: Array
) -> tuple[list[Array], None, None]:
    return [(cotangent * gradient).astype(gradient.dtype) for gradient in gradients], None, None


_mean.defvjp(_with_gradient, _backward)
