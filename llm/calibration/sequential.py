"""Second moments through a network whose first blocks are already quantized."""

from collections import ChainMap
from types import MappingProxyType
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..config import ModelConfig
from ..coordinates import HEAD_MIX
from ..model import block_params, layer_windows
from ..roles import EMBEDDING, FINAL_NORM, INPUT_OF, INPUTS, LINEAR_KINDS, linear_name
from ..weights import Weights
from . import blocks
from .collect import check_windows
from .statistics import HEAD_HESSIAN, hessian_name, statistic_shapes
from .sweep import BATCH_TOKENS, batches_of, finished


@final
class QuantizedPrefix:
    r"""The text as it arrives at one block after the other, through the quantized blocks before it.

    A block that is quantized with the inputs that it will really see can undo a part of the errors of the blocks before
    it. The weights may be in any coordinates, as long as their norms are folded: the second moments are in the
    same ones. The residual streams of all windows are held in memory, and the weights of one block.

    Args:
        config: architecture.
        weights: the original tensors with folded norms, the embedding as it will be used (quantized or not).
        windows: tokens, one window per row.
        batch_tokens: tokens that go through a block at a time.
        dtype: of all computations and sums.

    A compressor reads, with its own ``quantize(name, w, hessian) -> w_hat``::

        prefix = QuantizedPrefix(config, network, windows)
        while prefix.layer < config.num_layers:
            hessians = prefix.hessians()
            prefix.advance({name: quantize(name, network[name], hessians[name]) for name in hessians})

    References:
        Frantar et al., GPTQ, arXiv 2210.17323, section 4: the blocks are quantized one after the other, each with the
        inputs that the quantized blocks before it produce.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        windows: Int[np.ndarray, "windows length"],
        *,
        batch_tokens: int = BATCH_TOKENS,
        dtype: Any = np.float32,
    ):
        check_windows(config, windows)
        embedding = weights[EMBEDDING]
        self._config, self._weights, self._dtype = config, weights, np.dtype(dtype)
        self._num_tokens, self._length = int(windows.size), windows.shape[1]
        self._stream = [jnp.asarray(embedding[windows[rows]], dtype) for rows in batches_of(windows, batch_tokens)]
        self._layer = 0

    @property
    def layer(self) -> int:
        """The block that is to be quantized next; the number of blocks when all are."""
        return self._layer

    def hessians(self, quantized: Weights = MappingProxyType({})) -> dict[str, Float[np.ndarray, "d_in d_in"]]:
        """Second moment of the inputs of every linear layer of the current block, by the name of its weight.

        Args:
            quantized: tensors of this block that are quantized already. Ask four times (with nothing; with q, k and v;
                with o too; with gate and up too) to quantize in sequence inside a block as well.
        """
        layer = self._before_the_end()
        shapes = statistic_shapes(self._config, fisher=False)
        sums = blocks.empty_sums({tap: shapes[hessian_name(layer, tap)] for tap in INPUTS}, self._dtype)
        params, window = self._block(quantized)
        for x in self._stream:
            sums, _ = blocks.observe(self._config, window, params, sums, x)
        means = {tap: finished(sums[tap], self._num_tokens, hessian_name(layer, tap)) for tap in INPUTS}
        return {linear_name(layer, kind): means[INPUT_OF[kind]] for kind in LINEAR_KINDS}

    def advance(self, quantized: Weights) -> None:
        """Go through the current block with its quantized tensors; what is not given stays as it was."""
        self._before_the_end()
        params, window = self._block(quantized)
        self._stream = [blocks.advance(self._config, window, params, x) for x in self._stream]
        self._layer += 1

    def head_hessian(self) -> Float[np.ndarray, "width width"]:
        """Second moment of the inputs of the head, when all blocks are quantized."""
        if self._layer < self._config.num_layers:
            raise ValueError(f"block {self._layer} is not quantized yet: the head comes after all blocks")
        width = self._config.hidden_size
        mixed = HEAD_MIX in self._weights
        gain = jnp.ones(width, self._dtype) if mixed else jnp.asarray(self._weights[FINAL_NORM], self._dtype)
        sums = blocks.empty_sums({"hessian": (width, width)}, self._dtype)
        for x in self._stream:
            sums = blocks.observe_head(self._config, {"gain": gain}, sums, x)
        hessian = finished(sums["hessian"], self._num_tokens, HEAD_HESSIAN)
        if not mixed:
            return hessian
        mix = self._weights[HEAD_MIX].astype(self._dtype)
        return mix @ hessian @ mix

    def _before_the_end(self) -> int:
        if self._layer == self._config.num_layers:
            raise ValueError(f"all {self._layer} blocks are quantized: only the head is left")
        return self._layer

    def _block(self, quantized: Weights) -> tuple[dict[str, Any], blocks.Window]:
        weights = ChainMap(dict(quantized), self._weights)  # pyright: ignore[reportArgumentType]
        windows = layer_windows(self._config, self._length)
        params = block_params(self._config, weights, self._layer, self._dtype)
        return jax.tree.map(jnp.asarray, params), None if windows is None else windows[self._layer]
