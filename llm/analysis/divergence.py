"""How far a network moves when its matrices are changed: KL divergence per token on text that calibration has not seen.

The network is held once, in original coordinates with folded norms; a change replaces the stacked matrices of its
linear layers, so that every trial runs through the same compiled functions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..evaluation import Reference
from ..evaluation.quality import compare_tokens
from ..model import LINEARS, LanguageModel, projection_rows
from ..roles import linear_name
from .subject import Subject

BLOCK = 64
"""Neighbouring tokens whose mean counts as one sample, because the divergences of neighbours are correlated."""

Change = Callable[[str, Float[np.ndarray, "d_out d_in"]], Float[np.ndarray, "d_out d_in"]]
"""``change(name, w)`` is the matrix to use in the place of ``w``."""

Changes = Callable[[str, Float[np.ndarray, "d_out d_in"]], Sequence[Float[np.ndarray, "d_out d_in"]]]
"""The same for several networks at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Divergence of a changed network from the original.

    Attributes:
        blocks: mean over every block of tokens, nats per token.
    """

    blocks: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(np.mean(self.blocks))

    def less(self, other: "Divergence") -> tuple[float, float]:
        """Mean difference from another trial on the same text and its standard error, block by block.

        Example:
            >>> Divergence(blocks=(1.0, 3.0)).less(Divergence(blocks=(1.0, 1.0)))
            (1.0, 1.0)
        """
        difference = np.subtract(self.blocks, other.blocks)
        if len(difference) < 2:
            return float(difference.mean()), float("nan")
        return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over blocks."""
        return self.less(Divergence(blocks=(0.0,) * len(self.blocks)))[1]


class Trial:
    """The original network, and the divergence of changed ones from it.

    Args:
        subject: the network; matrices of layers that are not looked at stay as they are.
        tokens: windows to predict, none of which calibration has seen.
    """

    def __init__(self, subject: Subject, tokens: Int[np.ndarray, "windows length"]):
        self._subject = subject
        self._tokens = tokens
        self._reference = Reference(LanguageModel.from_weights(subject.config, subject.weights))

    def changed_by(self, change: Change) -> LanguageModel:
        """The network with every matrix that is looked at replaced."""
        return self.changed_by_each(lambda name, w: (change(name, w),))[0]

    def changed_by_each(self, change: Changes) -> list[LanguageModel]:
        """Several networks from one pass over the matrices, as many as ``change`` returns matrices."""
        reference = self._reference.model
        blocks = reference.params["blocks"]
        rows = {projection.rpartition(".")[2]: place for projection, place in projection_rows(reference.config).items()}
        stacks: list[dict[str, np.ndarray]] = []
        for layer in self._subject.layers:
            for projection, (linear, part) in rows.items():
                w = np.asarray(blocks[linear]["weight"][layer, part])
                for i, matrix in enumerate(change(linear_name(layer, projection.removesuffix("_proj")), w)):
                    if i == len(stacks):
                        stacks.append({name: np.array(blocks[name]["weight"]) for name in LINEARS})
                    stacks[i][linear][layer, part] = matrix
        return [self._with_weights(stack) for stack in stacks]

    def _with_weights(self, stacks: Mapping[str, np.ndarray | Array]) -> LanguageModel:
        reference = self._reference.model
        blocks = {key: dict(value) for key, value in reference.params["blocks"].items()}
        for linear, stack in stacks.items():
            blocks[linear]["weight"] = jnp.asarray(stack)
        return LanguageModel({**reference.params, "blocks": blocks}, reference.graphdef, reference.config)

    def measure(self, model: LanguageModel) -> Divergence:
        """Divergence of a network from the original, token by token, averaged over blocks of tokens."""
        blocks: list[float] = []
        for tokens in self._tokens[:, None]:
            hidden, expected = model.hidden_states(tokens)[:, :-1], self._reference.hidden(tokens)[:, :-1]
            targets = jnp.asarray(tokens[:, 1:])
            _, kl, _ = compare_tokens(hidden, model.head, expected, self._reference.head, targets)
            blocks += block_means(np.asarray(kl[0]))
        return Divergence(blocks=tuple(blocks))

    def scaled(self, moved: LanguageModel, scales: Sequence[float]) -> list[Divergence]:
        """Divergences at several multiples of the step from the original network to another one."""
        here, there = self._reference.model.params["blocks"], moved.params["blocks"]
        return [
            self.measure(
                self._with_weights(
                    {n: _between(here[n]["weight"], there[n]["weight"], jnp.float32(scale)) for n in LINEARS}
                )
            )
            for scale in scales
        ]


@jax.jit
def _between(w: Float[Array, "..."], moved: Float[Array, "..."], scale: Float[Array, ""]) -> Float[Array, "..."]:
    return w + scale * (moved - w)


def block_means(values: Float[np.ndarray, " tokens"]) -> list[float]:
    """Means over blocks of :data:`BLOCK` neighbours, all tokens included.

    Example:
        >>> [len(block_means(np.zeros(n))) for n in (10, 127, 128, 511)]
        [1, 1, 2, 7]
    """
    pieces = np.array_split(np.asarray(values, np.float64), max(1, len(values) // BLOCK))
    return [float(piece.mean()) for piece in pieces]
