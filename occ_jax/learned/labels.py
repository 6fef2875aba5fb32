"""Which leaves of a tree are trained: labels for :func:`optax.partition`."""

import jax
import jax.numpy as jnp

from occ_jax.learned.orthogonal import Cayley, Householder
from occ_jax.transforms import Butterfly, PlaneRotation, Scaling, Transform

FROZEN = "frozen"
"""Label of leaves that no gradient is taken of."""

TRAINED = "trained"
"""Label of leaves that the optimizer moves, where nothing else was asked for."""


def default_labels(params: object) -> object:
    """Train what has free parameters; keep what a transform merely holds.

    Trained are the leaves of Cayley, Householder, butterfly, plane and scaling transforms, and float arrays that stand
    outside of any transform. Frozen are the start of a Cayley transform, the leaves of all other transforms (a basis or
    signs, which a gradient step would destroy), and integers.

    Returns:
        A tree of labels of the same structure.

    Example:
        >>> from occ_jax.learned import cayley
        >>> from occ_jax.transforms import chain, hadamard
        >>> jax.tree.leaves(default_labels(chain(hadamard(4), cayley(4))))
        ['frozen', 'trained']
    """
    return jax.tree.map(_label, params, is_leaf=_is_single)


def _is_single(item: object) -> bool:
    """A transform that is made of no others."""
    return isinstance(item, Transform) and not any(isinstance(part, Transform | tuple) for part in vars(item).values())


def _label(item: object) -> object:
    if isinstance(item, Cayley | Householder | Butterfly | PlaneRotation | Scaling):
        return jax.tree_util.tree_map_with_path(lambda path, _: FROZEN if path[-1].name == "start" else TRAINED, item)
    if isinstance(item, Transform):
        return jax.tree.map(lambda _: FROZEN, item)
    return TRAINED if jnp.issubdtype(jnp.result_type(item), jnp.inexact) else FROZEN
