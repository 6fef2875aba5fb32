"""A network together with its parameters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from occ_jax._pytree import pytree_dataclass, replace, static_field
from occ_jax.quantization.row_parallel import ROWS, Devices, over_rows

from ..config import ModelConfig
from ..weights import Weights
from . import forward_pass as pure
from .llama import Llama, Params, init_params, make_graphdef
from .parameters import params_from_weights, weights_from_params


@pytree_dataclass
class LanguageModel:
    """Config, network and parameters of one model; a pytree whose leaves are the parameters.

    The methods are the compiled functions of :mod:`occ_llm.model.forward_pass`. Models of one config
    share what is compiled.

    Example:
        >>> config = ModelConfig(family="llama", vocab_size=32, hidden_size=8, intermediate_size=16, num_layers=2,
        ...                      num_heads=2, num_kv_heads=1, head_dim=4)
        >>> model = LanguageModel.random(config, key=jax.random.key(0))
        >>> model(jnp.zeros((1, 5), jnp.int32)).shape
        (1, 5, 32)
    """

    params: Params
    graphdef: nnx.GraphDef[Llama] = static_field()
    config: ModelConfig = static_field()

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: Weights, dtype: Any = jnp.float32) -> "LanguageModel":
        """Build the model of a checkpoint's tensors; see :func:`~occ_llm.model.parameters.params_from_weights`."""
        return cls(params_from_weights(config, weights, dtype), make_graphdef(config), config)

    @classmethod
    def random(cls, config: ModelConfig, *, key: Array, dtype: Any = jnp.float32) -> "LanguageModel":
        """Build a model to train from scratch."""
        return cls(init_params(config, key=key, dtype=dtype), make_graphdef(config), config)

    def weights(self) -> dict[str, np.ndarray]:
        """Tensors under their Hugging Face names."""
        return weights_from_params(self.config, self.params)

    @property
    def head(self) -> Float[Array, "vocab width"]:
        """Output matrix; the embedding if the two are tied."""
        return pure.head(self.params)

    def on(self, devices: Devices) -> "LanguageModel":
        """The model with a copy of its parameters on each of these devices; without devices, where it is."""
        if devices is None:
            return self
        everywhere = NamedSharding(Mesh(np.array(devices), (ROWS,)), PartitionSpec())
        return replace(self, params=jax.device_put(self.params, everywhere))

    def hidden_states(
        self, tokens: Int[Array | np.ndarray, "batch length"], *, devices: Devices = None
    ) -> Float[Array, "batch length width"]:
        """Residual stream after the last block and the final norm: what the head reads.

        Args:
            tokens: input.
            devices: that share the batch; :meth:`on` brings the parameters there once and for all.
        """
        return _hidden_states(self.graphdef, self.params, jnp.asarray(tokens), devices=devices)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Scores of the vocabulary for final hidden states."""
        return _logits(self.params, hidden)

    def __call__(self, tokens: Int[Array | np.ndarray, "batch length"]) -> Float[Array, "batch length vocab"]:
        """Logits of the next token at every position."""
        return _forward(self.graphdef, self.params, jnp.asarray(tokens))


@partial(jax.jit, static_argnames=("graphdef", "devices"))
def _hidden_states(graphdef: nnx.GraphDef[Llama], params: Params, tokens: Array, *, devices: Devices) -> Array:
    return over_rows(lambda tokens, params: pure.hidden_states(graphdef, params, tokens), devices)(tokens, params)


_logits = jax.jit(pure.logits)
_forward = jax.jit(pure.forward, static_argnums=0)
