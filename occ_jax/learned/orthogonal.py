r"""Orthogonal matrices as functions of free parameters: what gradient descent may move without leaving the group.

An optimiser that adds a step to the entries of an orthogonal matrix makes it something else. Here the parameters are
unconstrained and the matrix is orthogonal for all of their values, so any optimiser does. Parametrisations with fewer
parameters are made of these and of the transforms that have parameters of their own:
:func:`~occ_jax.transforms.butterfly`, :func:`~occ_jax.transforms.kronecker` of small rotations,
:func:`~occ_jax.transforms.blockwise`, and a :class:`~occ_jax.transforms.Scaling` after a rotation.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.transforms import Butterfly, Rotation, Transform, apply_matrix

_T = TypeVar("_T")


@pytree_dataclass
class Cayley(Transform):
    r"""Rotation by the Cayley transform of a skew-symmetric matrix, times a fixed start.

    .. math::

        Q = (I + A)^{-1} (I - A)\, Q_0, \qquad A = \tfrac12 (G - G^\top)

    Every :math:`G` gives an orthogonal :math:`Q`, :math:`G = 0` gives :math:`Q_0`, and all matrices :math:`Q` for
    which :math:`Q Q_0^\top` has no eigenvalue :math:`-1` are reached. The linear system is solved in float32 (or
    wider) and one Newton-Schulz step removes what rounding left: with a condition of :math:`I + A` up to 1,000 the
    product :math:`Q Q^\top` is the identity to better than 1e-5, however many steps have been taken.

    One matrix costs one LU factorization, :math:`O(n^3)`: multiply it out once with :func:`materialize` when it is
    applied to many tensors.

    Args:
        generator: :math:`G`, of which only the skew-symmetric part counts. The parameters.
        start: :math:`Q_0`, orthogonal, without a gradient; the identity when None.

    Example:
        >>> t = Cayley(jnp.asarray([[0.0, 1.0], [-1.0, 0.0]]), None)
        >>> print(t.forward(jnp.asarray([1.0, 0.0])).round(3) + 0.0)
        [0. 1.]

    References:
        Cayley, Sur quelques propriétés des déterminants gauches, J. reine angew. Math. 32, 1846.
        Helfrich, Willmott & Ye, Orthogonal recurrent neural networks with scaled Cayley transform, ICML 2018.
        Björck & Bowie, An iterative algorithm for computing the best estimate of an orthogonal matrix, 1971.
    """

    generator: Float[Array, "n n"]
    start: Float[Array, "n n"] | None

    def __post_init__(self) -> None:
        shape = jnp.shape(self.generator)
        if len(shape) != 2 or shape[0] != shape[1] or (self.start is not None and jnp.shape(self.start) != shape):
            start = None if self.start is None else jnp.shape(self.start)
            raise ValueError(f"A Cayley transform takes square matrices of one size, got {shape} and start {start}.")

    @property
    def size(self) -> int:
        """Length ``n`` of the vectors."""
        return self.generator.shape[-1]

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def rotation(self) -> Rotation:
        """The matrix multiplied out, differentiable in the generator."""
        dtype = np.promote_types(self.generator.dtype, jnp.float32)
        g = self.generator.astype(dtype)
        skew = (g - g.T) / 2
        one = jnp.eye(self.size, dtype=dtype)
        start = one if self.start is None else lax.stop_gradient(self.start).astype(dtype)
        # (I + A)^-1 (I - A) = 2 (I + A)^-1 - I
        q = 2 * jnp.linalg.solve(one + skew, start) - start
        # Tangents of q are tangents of the group, on which a Newton-Schulz step acts as the identity.
        return Rotation(q + lax.stop_gradient(newton_schulz(q) - q))

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``Q x``."""
        return self.rotation().forward(x)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``Q^T y``."""
        return self.rotation().inverse(y)


@pytree_dataclass
class Householder(Transform):
    r"""Product of reflections, in compact WY form.

    .. math::

        Q = \prod_{k=1}^{m} \left(I - 2 \frac{v_k v_k^\top}{\lVert v_k \rVert^2}\right) = I - U^\top T U,
        \qquad T^{-1} = \tfrac12 I + \operatorname{striu}(U U^\top)

    with :math:`u_k = v_k / \lVert v_k \rVert` as rows of :math:`U`. It changes vectors inside the span of its
    directions only, at :math:`O(n m)` for each, and has :math:`n m` parameters; :math:`m = n` reflections reach every
    orthogonal matrix of determinant :math:`(-1)^n`. To begin elsewhere than at the identity, put it after a fixed
    transform with :func:`~occ_jax.transforms.chain`.

    Args:
        vectors: :math:`v_k` as rows, of any length but zero. The parameters.

    Example:
        >>> t = Householder(jnp.asarray([[1.0, -1.0]]))
        >>> [round(x) for x in t.forward(jnp.asarray([3.0, 5.0])).tolist()]
        [5, 3]

    References:
        Schreiber & Van Loan, A storage-efficient WY representation for products of Householder transformations,
        SIAM J. Sci. Stat. Comput. 10, 1989; Joffrain et al., Accumulating Householder transformations, revisited, 2006.
    """

    vectors: Float[Array, "reflections n"]

    def __post_init__(self) -> None:
        if jnp.ndim(self.vectors) != 2:
            raise ValueError(f"Reflections are given by a matrix of row vectors, got shape {jnp.shape(self.vectors)}.")

    @property
    def size(self) -> int:
        """Length ``n`` of the vectors."""
        return self.vectors.shape[-1]

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def rotation(self) -> Rotation:
        """The matrix multiplied out, differentiable in the vectors."""
        u, t = self._factors()
        return Rotation(jnp.eye(self.size, dtype=u.dtype) - jnp.matmul(u.T, t @ u, precision="highest"))

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply the reflections, from the last to the first."""
        u, t = self._factors()
        return _reflect(x, u, t)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply the reflections, from the first to the last."""
        u, t = self._factors()
        return _reflect(y, u, t.T)

    def _factors(self) -> tuple[Float[Array, "m n"], Float[Array, "m m"]]:
        v = self.vectors.astype(np.promote_types(self.vectors.dtype, jnp.float32))
        u = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
        one = jnp.eye(len(u), dtype=u.dtype)
        gram = jnp.matmul(u, u.T, precision="highest")
        return u, solve_triangular(one / 2 + jnp.triu(gram, 1), one)


def _reflect(x: Float[Array, "*batch n"], u: Float[Array, "m n"], t: Float[Array, "m m"]) -> Float[Array, "*batch n"]:
    wide = x.astype(np.promote_types(np.promote_types(x.dtype, u.dtype), jnp.float32))
    return (wide - apply_matrix(u.T, apply_matrix(t, apply_matrix(u, wide)))).astype(x.dtype)


def cayley(n: int, *, start: Transform | None = None, dtype: DTypeLike = jnp.float32) -> Cayley:
    """A dense rotation of size ``n``, to be trained, at the identity or at a given orthonormal transform.

    Args:
        n: length of the vectors.
        start: where to begin, a Hadamard transform or a KLT for example; it is multiplied out and stays fixed.
        dtype: of the parameters.

    Raises:
        ValueError: the start is not orthonormal.

    Example:
        >>> from occ_jax.transforms import hadamard
        >>> print(cayley(2, start=hadamard(2)).forward(jnp.ones(2)).round(3))
        [1.414 0.   ]
    """
    generator = jnp.zeros((n, n), dtype)
    if start is None:
        return Cayley(generator, None)
    if not start.is_orthonormal:
        raise ValueError(f"{type(start).__name__} is not orthonormal: a rotation cannot start there")
    return Cayley(generator, start.forward(jnp.eye(n, dtype=dtype)).T)


def householder(n: int, num_pairs: int, *, key: Key[Array, ""], dtype: DTypeLike = jnp.float32) -> Householder:
    """``2 * num_pairs`` reflections in random directions at which each pair cancels: the identity, to be trained.

    Example:
        >>> t = householder(5, 2, key=jax.random.key(0))
        >>> print(t.forward(jnp.ones(5)).round(3))
        [1. 1. 1. 1. 1.]
    """
    if n < 1 or num_pairs < 1:
        raise ValueError(f"Reflections need a direction and at least one pair, got n={n} and num_pairs={num_pairs}.")
    return Householder(jnp.repeat(jax.random.normal(key, (num_pairs, n), dtype), 2, axis=0))


def newton_schulz(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    r"""One step towards the nearest orthogonal matrix, :math:`M \leftarrow \tfrac32 M - \tfrac12 M M^\top M`.

    A departure of :math:`\epsilon = \lVert M M^\top - I \rVert < 1` becomes :math:`\tfrac34 \epsilon^2` and less.

    Example:
        >>> bool(jnp.allclose(newton_schulz(1.01 * jnp.eye(2)), jnp.eye(2), atol=2e-4))
        True
    """
    gram = jnp.matmul(matrix.T, matrix, precision="highest")
    return 1.5 * matrix - 0.5 * jnp.matmul(matrix, gram, precision="highest")


def materialize(tree: _T) -> _T:
    """The same transforms with every :class:`Cayley` and :class:`Householder` inside multiplied out to a rotation.

    Differentiable: call it once in a loss that applies one transform to many tensors, and before a transform is
    stored, since a file holds the matrix and not its parameters. Stacks of transforms, with leading axes on all leaves,
    become stacks of rotations.

    Example:
        >>> from occ_jax.transforms import blockwise
        >>> type(materialize(blockwise(cayley(4), 4)).transform).__name__
        'Rotation'
    """
    return jax.tree.map(
        lambda t: _over_stack(lambda one: one.rotation(), t) if _is_dense(t) else t, tree, is_leaf=_is_dense
    )


def _is_dense(item: object) -> bool:
    return isinstance(item, Cayley | Householder)


def orthogonality_error(tree: object) -> Float[Array, ""]:
    r"""How far the parametrised transforms of a tree are from orthonormal: :math:`\max |p^\top T^\top T - p^\top|`.

    Taken over eight sign vectors of unit length (all unit vectors below size 8), so that it costs little
    beside a training step; 0 when the tree holds none.

    Example:
        >>> float(orthogonality_error({"residual": cayley(16)})) < 1e-6
        True
    """
    found = [t for t in jax.tree.leaves(tree, is_leaf=_is_parametrised) if _is_parametrised(t)]
    errors = [jnp.max(_over_stack(_probe, t)) for t in found]
    return jnp.max(jnp.stack(errors)) if errors else jnp.zeros((), jnp.float32)


def _is_parametrised(item: object) -> bool:
    return isinstance(item, Cayley | Householder | Butterfly)


def _over_stack(f: Callable, t: Transform) -> Any:
    """``f`` of a transform, or of every one of a stack (or stack of stacks) of them."""
    for _ in range(jax.tree.leaves(t)[0].ndim - 2):
        f = jax.vmap(f)
    return f(t)


def _probe(t: Cayley | Householder | Butterfly) -> Float[Array, ""]:
    n = t.size
    # Rows of Sylvester's matrix, cut to length: probes that no coordinate axis is orthogonal to.
    place = jnp.arange(n)[None, :] & jnp.arange(8)[:, None]
    signs = (1 - 2 * (lax.population_count(place) % 2)).astype(jnp.float32)
    probes = signs * n**-0.5 if n >= 8 else jnp.eye(n, dtype=jnp.float32)
    turned = materialize(t)
    return jnp.max(jnp.abs(turned.inverse(turned.forward(probes)) - probes)).astype(jnp.float32)
