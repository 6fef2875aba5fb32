"""The Llama family in flax NNX: one pure forward pass over stacked, scanned blocks."""

from .divergence import mean_divergence
from .forward_pass import (
    block,
    final_norm,
    forward,
    head,
    hidden_states,
    layer_windows,
    logits,
    observe,
    position_table,
)
from .language_model import LanguageModel
from .layers import LINEARS
from .llama import Llama, init_params, make_graphdef
from .parameters import block_params, params_from_weights, projection_rows, weights_from_params
from .probes import attach_factor, attach_squared, output_sizes, zero_probes, zero_squared_probes

__all__ = [
    "LINEARS",
    "LanguageModel",
    "Llama",
    "attach_factor",
    "attach_squared",
    "block",
    "block_params",
    "final_norm",
    "forward",
    "head",
    "hidden_states",
    "init_params",
    "layer_windows",
    "logits",
    "make_graphdef",
    "mean_divergence",
    "observe",
    "output_sizes",
    "params_from_weights",
    "position_table",
    "projection_rows",
    "weights_from_params",
    "zero_probes",
    "zero_squared_probes",
]
