"""Between the tensors of a Hugging Face checkpoint and the stacked parameters of the network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoints.layout import tensor_shapes
from ..config import ModelConfig
from ..errors import OccError
from ..roles import EMBEDDING, FINAL_NORM, HEAD
from ..weights import Weights
from .layers import LINEARS
from .llama import Params

_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}


def projection_rows(config: ModelConfig) -> dict[str, tuple[str, slice]]:
    """Where the rows of each projection are: Hugging Face name -> (linear layer of the block, rows).

    Example:
        >>> config = ModelConfig(family="llama", vocab_size=2, hidden_size=8, intermediate_size=12, num_layers=1,
        ...                      num_heads=4, num_kv_heads=2, head_dim=2)
        >>> projection_rows(config)["self_attn.v_proj"]
        ('qkv', slice(12, 16, None))
    """
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, hidden = config.hidden_size, config.intermediate_size
    sizes = {"qkv": (q, kv, kv), "o": (width,), "gate_up": (hidden, hidden), "down": (width,)}
    rows = {}
    for linear, projections in LINEARS.items():
        start = 0
        for projection, size in zip(projections, sizes[linear], strict=True):
            rows[projection] = (linear, slice(start, start + size))
            start += size
    return rows


def block_params(config: ModelConfig, weights: Weights, layer: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters of one block as arrays on the host; each of its tensors is read once.

    Args:
        config: of the model.
        weights: Hugging Face tensor name -> array.
        layer: number of the block.
        dtype: of the parameters.

    Raises:
        OccError: if a tensor is missing or has another shape than the config says.
    """
    return _block(_Reader(weights.__getitem__, tensor_shapes(config), dtype), _norms(config), layer)


def params_from_weights(config: ModelConfig, weights: Weights, dtype: Any = jnp.float32) -> Params:
    """Stack the tensors of a checkpoint into the parameters of the network, reading each of them once.

    Args:
        config: of the model.
        weights: Hugging Face tensor name -> array.
        dtype: of the parameters.

    Raises:
        OccError: if a tensor is missing, has another shape than the config says, or is not one of this architecture
            (a bias that the config does not mention would otherwise be dropped in silence).
    """
    shapes = tensor_shapes(config)
    _check_names(config, shapes, set(weights))
    read = _Reader(weights.__getitem__, shapes, dtype)
    first = _block(read, _norms(config), 0)
    stacks = jax.tree.map(lambda array: np.empty((config.num_layers, *array.shape), array.dtype), first)
    for layer in range(config.num_layers):
        params = first if layer == 0 else _block(read, _norms(config), layer)
        jax.tree.map(lambda stack, array, at=layer: stack.__setitem__(at, array), stacks, params)
    params = {"embedding": read(EMBEDDING), "blocks": stacks, "norm": {"gain": read(FINAL_NORM)}}
    if not config.tie_word_embeddings:
        params["head"] = read(HEAD)
    return jax.tree.map(jnp.asarray, params)


def weights_from_params(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Tensors of a Hugging Face checkpoint; the inverse of :func:`params_from_weights`."""
    weights = {EMBEDDING: np.asarray(params["embedding"])}
    for projection, (linear, rows) in projection_rows(config).items():
        for kind, stacked in params["blocks"][linear].items():
            for layer, array in enumerate(np.asarray(stacked)):
                weights[f"model.layers.{layer}.{projection}.{kind}"] = array[rows]
    for norm, name in _norms(config).items():
        for layer, gain in enumerate(np.asarray(params["blocks"][norm]["gain"])):
            weights[f"model.layers.{layer}.{name}.weight"] = gain
    weights[FINAL_NORM] = np.asarray(params["norm"]["gain"])
    if not config.tie_word_embeddings:
        weights[HEAD] = np.asarray(params["head"])
    return {name: weights[name] for name in tensor_shapes(config)}


def _norms(config: ModelConfig) -> Mapping[str, str]:
    return _NORMS | (_HEAD_NORMS if config.qk_norm else {})


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads tensors and checks them against the config."""

    get: Callable[[str], np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: Any

    def __call__(self, name: str) -> np.ndarray:
        try:
            array = np.asarray(self.get(name), self.dtype)
        except KeyError:
            raise OccError(f"the checkpoint lacks tensor {name!r}; was a shard left out?") from None
        if array.shape != self.shapes[name]:
            raise OccError(
                f"tensor {name!r} has shape {array.shape}, but the model config says {self.shapes[name]}; "
                "config.json and the weights are not of the same model."
            )
        return array


def _block(read: _Reader, norms: Mapping[str, str], layer: int) -> dict[str, Any]:
    prefix = f"model.layers.{layer}."
    params: dict[str, Any] = {}
    for linear, projections in LINEARS.items():
        params[linear] = {}
        for kind in ("weight", "bias"):
            names = [f"{prefix}{projection}.{kind}" for projection in projections]
            if names[0] in read.shapes:
                params[linear][kind] = np.concatenate([read(name) for name in names])
    return params | {norm: {"gain": read(f"{prefix}{name}.weight")} for norm, name in norms.items()}


def _check_names(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], names: set[str]) -> None:
    if missing := sorted(set(shapes) - names):
        raise OccError(
            f"the checkpoint lacks {len(missing)} of the {len(shapes)} tensors of this {config.family} model, "
            f"among them {missing[0]!r}; was a shard left out?"
        )
    redundant = {HEAD} if config.tie_word_embeddings else set()
    spare = {n for n in names - set(shapes) - redundant if not n.endswith("rotary_emb.inv_freq")}
    if spare:
        raise OccError(
            f"the checkpoint holds {len(spare)} tensors that this {config.family} model has no use for, "
            f"among them {min(spare)!r}; config.json and the weights are not of the same model."
        )
