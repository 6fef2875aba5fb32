"""Between the tensors of a Hugging Face checkpoint and the stacked parameters of the network."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..config import ModelConfig
from ..errors import OccError
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


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint of this model."""
    width, q_size = config.hidden_size, config.num_heads * config.head_dim
    d_in = {"qkv": width, "o": q_size, "gate_up": width, "down": config.intermediate_size}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for projection, (linear, rows) in projection_rows(config).items():
            shapes[f"{prefix}{projection}.weight"] = (rows.stop - rows.start, d_in[linear])
            if _has_bias(config, linear):
                shapes[f"{prefix}{projection}.bias"] = (rows.stop - rows.start,)
        shapes |= {f"{prefix}{name}.weight": (width,) for name in _NORMS.values()}
        if config.qk_norm:
            shapes |= {f"{prefix}{name}.weight": (config.head_dim,) for name in _HEAD_NORMS.values()}
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def params_from_weights(config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: Any = jnp.float32) -> Params:
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
    _check_names(config, shapes, weights)

    def read(name: str) -> np.ndarray:
        array = weights[name]
        if array.shape != shapes[name]:
            raise OccError(
                f"tensor {name!r} has shape {array.shape}, but the model config says {shapes[name]}; "
                "config.json and the weights are not of the same model."
            )
        return array

    def stack(names: list[str]) -> jnp.ndarray:
        """Stack one tensor (or several, one above the other) of every layer."""
        first = 0
        rows = [shapes[f"model.layers.0.{name}"][0] for name in names]
        out = np.empty((config.num_layers, sum(rows), *shapes[f"model.layers.0.{names[0]}"][1:]), jnp.dtype(dtype))
        for name, count in zip(names, rows, strict=True):
            for layer in range(config.num_layers):
                out[layer, first : first + count] = read(f"model.layers.{layer}.{name}")
            first += count
        return jnp.asarray(out)

    blocks: dict[str, Any] = {}
    for linear, projections in LINEARS.items():
        blocks[linear] = {"weight": stack([f"{projection}.weight" for projection in projections])}
        if _has_bias(config, linear):
            blocks[linear]["bias"] = stack([f"{projection}.bias" for projection in projections])
    for norm, name in (_NORMS | (_HEAD_NORMS if config.qk_norm else {})).items():
        blocks[norm] = {"gain": stack([f"{name}.weight"])}
    params = {"embedding": jnp.asarray(read("model.embed_tokens.weight"), dtype), "blocks": blocks}
    params["norm"] = {"gain": jnp.asarray(read("model.norm.weight"), dtype)}
    if not config.tie_word_embeddings:
        params["head"] = jnp.asarray(read("lm_head.weight"), dtype)
    return params


def weights_from_params(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Tensors of a Hugging Face checkpoint; the inverse of :func:`params_from_weights`."""
    weights = {"model.embed_tokens.weight": np.asarray(params["embedding"])}
    for projection, (linear, rows) in projection_rows(config).items():
        for kind, stacked in params["blocks"][linear].items():
            for layer, array in enumerate(np.asarray(stacked)):
                weights[f"model.layers.{layer}.{projection}.{kind}"] = array[rows]
    for norm, name in (_NORMS | (_HEAD_NORMS if config.qk_norm else {})).items():
        for layer, gain in enumerate(np.asarray(params["blocks"][norm]["gain"])):
            weights[f"model.layers.{layer}.{name}.weight"] = gain
    weights["model.norm.weight"] = np.asarray(params["norm"]["gain"])
    if "head" in params:
        weights["lm_head.weight"] = np.asarray(params["head"])
    return weights


def _has_bias(config: ModelConfig, linear: str) -> bool:
    return {
        "qkv": config.attention_bias,
        "o": config.attention_output_bias,
        "gate_up": config.mlp_bias,
        "down": config.mlp_bias,
    }[linear]


def _check_names(config: ModelConfig, shapes: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    names = set(weights)
    if missing := sorted(set(shapes) - names):
        raise OccError(
            f"the checkpoint lacks {len(missing)} of the {len(shapes)} tensors of this {config.family} model, "
            f"among them {missing[0]!r}; was a shard left out?"
        )
    spare = {n for n in names - set(shapes) if not n.endswith("rotary_emb.inv_freq")}
    if unknown := sorted(spare - ({"lm_head.weight"} if config.tie_word_embeddings else set())):
        raise OccError(
            f"the checkpoint holds {len(unknown)} tensors that this {config.family} model has no use for, "
            f"among them {unknown[0]!r}; config.json and the weights are not of the same model."
        )
