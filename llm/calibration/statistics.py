r"""What calibration knows about a network: second moments of inputs, Fisher information of outputs, counts of tokens.

All averages are per token. With :math:`L` the sum over the positions of a window of :math:`-\log p(\text{label})`,
labels drawn from the model itself, an error :math:`E` of the matrix of a linear layer :math:`y = W x` costs, to second
order and if inputs and output gradients are independent,

.. math::

    D_{KL} \approx \tfrac12 \operatorname{tr}(G E H E^\top), \qquad
    H = \mathbb{E}[x x^\top], \quad G = \mathbb{E}[\nabla_y L \, \nabla_y L^\top]

nats per token. Inputs and gradients are far from independent where queries, keys, values, gates and units of the MLP
read the residual stream: the first token of a window gets nearly all of the gradient of the values, for every later
token attends to it, and it has one and the same input. There :math:`H` and :math:`G` are the product that is nearest to
what errors really cost (:mod:`occ_jax.quantization.product_form`), with a weight for each token.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ..config import ModelConfig
from ..roles import EMBEDDING, HEAD, INPUT_OF, LINEAR_KINDS, kind_of, layer_of, linear_name
from ..weights import Weights
from .fingerprint import Fingerprint

WEIGHTED_INPUTS = ("attention_in", "mlp_in")
"""Inputs whose tokens are weighted by the gradients of the outputs that they lead to."""

SHRINKAGE = 0.5
"""Share of the plain second moment in the one that goes with weighted tokens: weights leave few tokens to speak of, and
the plain one comes from all windows. Without it nothing is gained at 3 bits."""

TURNING_OUTPUTS = frozenset({"q", "k", "v", "o", "down"})
"""Kinds of linear layers that write a space whose basis may be turned: the residual stream, queries, keys, values."""

HEAD_HESSIAN = "lm_head.hessian"
TOKEN_COUNTS = "model.embed_tokens.counts"


def hessian_name(layer: int, tap: str) -> str:
    """Name of the second moment of one kind of input.

    Example:
        >>> hessian_name(3, "o_in")
        'model.layers.3.o_in.hessian'
    """
    return f"model.layers.{layer}.{tap}.hessian"


def weighted_name(layer: int, tap: str) -> str:
    """Name of the second moment of one kind of input with a weight for each token.

    Example:
        >>> weighted_name(3, "mlp_in")
        'model.layers.3.mlp_in.weighted'
    """
    return f"model.layers.{layer}.{tap}.weighted"


def fisher_name(weight: str) -> str:
    """Name of the output Fisher of the layer with the given weight.

    Example:
        >>> fisher_name("model.layers.3.mlp.up_proj.weight")
        'model.layers.3.mlp.up_proj.fisher'
    """
    return weight.removesuffix("weight") + "fisher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Second moments and Fisher information of one network on one text, read lazily.

    Attributes:
        config: architecture of the network.
        tensors: name -> array (:func:`statistic_shapes`); maybe read from disk at every access.
        num_tokens: number of positions that were averaged over.
        fingerprint: what the statistics were collected from.
    """

    config: ModelConfig
    tensors: Weights
    num_tokens: int
    fingerprint: Fingerprint

    def hessian(self, weight: str) -> Float[np.ndarray, "d_in d_in"]:
        """Second moment of the inputs of a linear layer or of the head, by the name of its weight.

        A tied head is asked for as ``lm_head.weight``; its inputs carry the gain of the final norm.

        Raises:
            ValueError: ``weight`` is not a matrix that reads activations.
        """
        if weight == HEAD:
            return self.tensors[HEAD_HESSIAN]
        tap = INPUT_OF.get(kind_of(weight))
        if tap is None:
            raise ValueError(f"{weight} reads no activations: ask for a linear layer of a block or for {HEAD}")
        return self.tensors[hessian_name(_layer(weight), tap)]

    def weights_tokens(self, weight: str) -> bool:
        """Whether the tokens that a matrix reads have weights in :meth:`error_moment` and :meth:`fisher`."""
        return self.has_fisher and INPUT_OF.get(kind_of(weight)) in WEIGHTED_INPUTS

    def error_moment(self, weight: str) -> Float[np.ndarray, "d_in d_in"]:
        """What goes with :meth:`fisher` to make the cost of an error: :meth:`hessian`, or the one of weighted tokens.

        The latter is shrunk towards the former, at its own trace.

        Raises:
            ValueError: ``weight`` is not a matrix that reads activations.
        """
        if not self.weights_tokens(weight):
            return self.hessian(weight)
        weighted, plain = self.tensors[weighted_name(_layer(weight), INPUT_OF[kind_of(weight)])], self.hessian(weight)
        scale = np.trace(weighted) / np.trace(plain)
        return (1 - SHRINKAGE) * weighted + np.asarray(SHRINKAGE * scale, plain.dtype) * plain

    def fisher(self, weight: str) -> Float[np.ndarray, " d_out"]:
        """Diagonal Fisher of a layer's outputs (one value for each row of its weight, of the head: each token)."""
        fisher = self._fisher(weight)
        return np.diagonal(fisher) if fisher.ndim == 2 else fisher

    def fisher_matrix(self, weight: str) -> Float[np.ndarray, "d_out d_out"]:
        """Full Fisher of the outputs of a linear layer of a block, or of the embedding.

        Raises:
            ValueError: of the head only the diagonal was collected.
        """
        fisher = self._fisher(weight)
        if fisher.ndim != 2:
            raise ValueError(f"only the diagonal Fisher of {weight} was collected: ask for fisher({weight!r})")
        return fisher

    @property
    def has_fisher(self) -> bool:
        """Whether output Fisher information was collected beside the second moments."""
        return fisher_name(HEAD) in self.tensors

    @property
    def token_counts(self) -> Int[np.ndarray, " vocab"]:
        """How often each token occurs in the text; they sum to :attr:`num_tokens`."""
        return self.tensors[TOKEN_COUNTS]

    def residual_moment(self) -> Float[np.ndarray, "width width"]:
        """Second moment of the normalised residual stream, averaged over everything in the blocks that reads it."""
        taps = ("attention_in", "mlp_in")
        names = [hessian_name(layer, tap) for layer in range(self.config.num_layers) for tap in taps]
        total = np.zeros((self.config.hidden_size, self.config.hidden_size))
        for name in names:
            total += self.tensors[name]
        return (total / len(names)).astype(np.float32)

    def singular_inputs(self) -> tuple[str, ...]:
        """Names of the second moments that cannot have full rank, because there were fewer tokens than channels."""
        shapes = statistic_shapes(self.config, fisher=False)
        return tuple(n for n, shape in shapes.items() if n.endswith(".hessian") and shape[0] > self.num_tokens)

    def _fisher(self, weight: str) -> np.ndarray:
        if not self.has_fisher:
            raise ValueError("these statistics hold no Fisher information: calibrate with fisher=True")
        if weight not in (EMBEDDING, HEAD) and kind_of(weight) not in LINEAR_KINDS:
            raise ValueError(f"{weight} is not a matrix: ask for a linear layer, {EMBEDDING} or {HEAD}")
        return self.tensors[fisher_name(weight)]


def statistic_shapes(config: ModelConfig, *, fisher: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything that is collected for a network, in the order of the network.

    Args:
        config: architecture.
        fisher: with the output Fisher.
    """
    width, hidden, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    queries, values = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    outputs = {"q": queries, "k": values, "v": values, "o": width, "gate": hidden, "up": hidden, "down": width}
    inputs = config.input_widths
    shapes: dict[str, tuple[int, ...]] = {TOKEN_COUNTS: (vocab,)}
    if fisher:
        shapes[fisher_name(EMBEDDING)] = (width, width)
    for layer in range(config.num_layers):
        shapes |= {hessian_name(layer, tap): (d, d) for tap, d in inputs.items()}
        if fisher:
            shapes |= {weighted_name(layer, tap): (d, d) for tap, d in inputs.items() if tap in WEIGHTED_INPUTS}
            shapes |= {fisher_name(linear_name(layer, kind)): (d, d) for kind, d in outputs.items()}
    shapes[HEAD_HESSIAN] = (width, width)
    if fisher:
        shapes[fisher_name(HEAD)] = (vocab,)
    return shapes


def _layer(weight: str) -> int:
    layer = layer_of(weight)
    assert layer is not None, weight
    return layer
