"""A tree taken apart into the leaves that are chosen for something and all others, and put together again."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Split:
    """The shape of a tree, and which of its leaves are chosen.

    Example:
        >>> leaves, structure = jax.tree.flatten({"a": jax.numpy.ones(1), "b": jax.numpy.ones(2)})
        >>> split = Split(structure, (True, False))
        >>> chosen, rest = split.apart(leaves)
        >>> {name: leaf.tolist() for name, leaf in split.merge([3 * x for x in chosen], rest).items()}
        {'a': [3.0], 'b': [1.0, 1.0]}
    """

    structure: Any
    is_chosen: tuple[bool, ...]

    def apart(self, leaves: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Of the leaves of a tree, in order, the chosen ones and the others."""
        pairs = list(zip(leaves, self.is_chosen, strict=True))
        return [leaf for leaf, flag in pairs if flag], [leaf for leaf, flag in pairs if not flag]

    def merge(self, chosen: Sequence[Array], rest: Sequence[Array]) -> Any:
        """The tree with these leaves."""
        sources = {True: iter(chosen), False: iter(rest)}
        return jax.tree.unflatten(self.structure, [next(sources[flag]) for flag in self.is_chosen])
