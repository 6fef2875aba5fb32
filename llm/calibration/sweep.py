r"""One way forward and one way back through the network, layer by layer.

Forward, the windows go through one block after the other; the second moments of its inputs are finished and leave
memory. The input of every block is put aside (:class:`~occ_llm.calibration.spool.Spool`) for the windows that also go
back: at the end labels are drawn from the model's predictions, and on the way back every block is computed once more
from its input. At any time one block's weights, one block's statistics, a few arrays of the size of the text's residual
stream and, on the way back, the gradients of one block's outputs are held.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..config import ModelConfig
from ..errors import OccError
from ..model import block_params, layer_windows
from ..roles import EMBEDDING, FINAL_NORM, HEAD, INPUT_OF, INPUTS, LINEAR_KINDS, linear_name
from ..weights import Weights
from . import blocks
from .blocks import Residual, Sums
from .head import label_bits
from .moments import CompensatedSum
from .position import Journal
from .spool import Spool
from .statistics import (
    HEAD_HESSIAN,
    TOKEN_COUNTS,
    WEIGHTED_INPUTS,
    fisher_name,
    hessian_name,
    statistic_shapes,
    weighted_name,
)
from .text import spread
from .weighting import Tokens, weighted_moments

Progress = Callable[[Iterable], Iterable]
"""Wraps an iterable (with a length) and shows how far it has come."""

Write = Callable[[str, np.ndarray], None]
"""Takes a finished statistic by name."""

BATCH_TOKENS = 4096
"""Tokens that go through a block at a time: enough for efficient matrix products, and little memory."""


@final
class Sweep:
    """The residual stream of some windows on its way through a network.

    Args:
        config: architecture.
        weights: tensors with folded norms.
        windows: tokens.
        write: receives every statistic once, when it is finished.
        key: seed of the labels.
        fisher_windows: windows, spread over the others, that go back; ``None`` = all.
        batch_tokens: tokens that go through a block at a time (at least one window does).
        dtype: of all computations and sums.
        journal: keeps how far it has come, and says where to begin.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        windows: Int[np.ndarray, "windows length"],
        write: Write,
        *,
        key: jax.Array,
        fisher_windows: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        dtype: Any = np.float32,
        journal: Journal | None = None,
    ):
        self._config, self._weights, self._key = config, weights, key
        self._dtype = np.dtype(dtype)
        self._shapes = statistic_shapes(config)
        going_back = spread(len(windows), len(windows) if fisher_windows is None else fisher_windows)
        back, rest = windows[going_back], np.delete(windows, going_back, axis=0)
        self._windows = np.concatenate([back, rest])
        self._back_size = back.size
        self._batches = list(batches_of(back, batch_tokens))
        self._num_back = len(self._batches)
        if len(rest):
            self._batches += [slice(b.start + len(back), b.stop + len(back)) for b in batches_of(rest, batch_tokens)]
        self._journal = journal or Journal()
        self._stream: list[Residual] = [jnp.asarray(x) for x in self._journal.begun.stream]
        self._write_finished = write

    def there(self, progress: Progress) -> None:
        """Forward only: second moments of all inputs, and the counts of the tokens."""
        begun = self._begin()
        for layer in progress(range(begun, self._config.num_layers)):
            self._forward(layer)
            self._journal.save(layer + 1, self._stream)
        names = {"hessian": HEAD_HESSIAN}
        sums, norm = self._sums(names), {"gain": self._tensor(FINAL_NORM)}
        for x in self._stream:
            sums = blocks.observe_head(self._config, norm, sums, x)
        self._write(sums, names)

    def there_and_back(self, progress: Progress) -> None:
        """Forward, labels, backward: everything that :func:`statistic_shapes` names."""
        begun, depth = self._begin(), self._config.num_layers
        with self._journal.spool() as spool:
            for step in progress(range(begun, 2 * depth + 1)):
                if step < depth:
                    self._forward(step, spool)
                elif step == depth:
                    self._turn()
                else:
                    self._back(2 * depth - step, spool)
                self._journal.save(step + 1, self._stream, spool)
        names = {"fisher": fisher_name(EMBEDDING)}
        sums = self._sums(names)
        for gradient in self._stream:
            sums = blocks.observe_embedding(sums, gradient)
        self._write(sums, names, self._back_size)

    def _begin(self) -> int:
        """The first step; before all steps the tokens are embedded."""
        if not (begun := self._journal.begun.steps):
            self._embed()
        return begun

    def _embed(self) -> None:
        counts = np.bincount(self._windows.ravel(), minlength=self._config.vocab_size)
        self._write_finished(TOKEN_COUNTS, counts.astype(np.int64))
        embedding = self._weights[EMBEDDING]
        self._stream = [jnp.asarray(embedding[self._windows[rows]], self._dtype) for rows in self._batches]

    def _forward(self, layer: int, spool: Spool | None = None) -> None:
        """Observe a block and go through it, putting aside the inputs that are needed on the way back."""
        names = {tap: hessian_name(layer, tap) for tap in INPUTS}
        sums = self._sums(names)
        params, window = self._block(layer)
        for i, x in enumerate(self._stream):
            if spool is not None and i < self._num_back:
                spool.push(np.asarray(x))
            sums, self._stream[i] = blocks.observe(self._config, window, params, sums, x)
        self._require_finite(layer)
        self._write(sums, names)

    def _turn(self) -> None:
        """From the output of the last block to its gradient."""
        config = self._config
        head = self._tensor(EMBEDDING if config.tie_word_embeddings else HEAD)
        names, fisher = {"hessian": HEAD_HESSIAN}, {"fisher": fisher_name(HEAD)}
        sums, back_sums, norm = self._sums(names), self._sums(fisher), {"gain": self._tensor(FINAL_NORM)}
        for i, (x, rows) in enumerate(zip(self._stream, self._batches, strict=True)):
            sums = blocks.observe_head(config, norm, sums, x)
            if i < self._num_back:
                bits = label_bits(self._key, rows.start, count=x.shape[0], length=x.shape[1])
                back_sums, self._stream[i] = blocks.differentiate_head(config, norm, head, back_sums, x, bits)
        self._stream = self._stream[: self._num_back]
        self._write(sums, names)
        self._write(back_sums, fisher, self._back_size)

    def _back(self, layer: int, spool: Spool) -> None:
        """From the gradient at the output of a block to the one at its input, finishing the block's Fisher."""
        plain = [kind for kind in LINEAR_KINDS if INPUT_OF[kind] not in WEIGHTED_INPUTS]
        names = {kind: fisher_name(linear_name(layer, kind)) for kind in plain}
        sums = self._sums(names)
        params, window = self._block(layer)
        seen: dict[str, list[Tokens]] = {tap: [] for tap in WEIGHTED_INPUTS}
        for i in reversed(range(self._num_back)):
            x, gradient = jnp.asarray(spool.pop()), self._stream[i]
            sums, self._stream[i], tokens = blocks.differentiate(self._config, window, params, sums, x, gradient)
            for tap, found in tokens.items():
                seen[tap].append(found)
        self._write(sums, names, self._back_size)
        for tap, batches in seen.items():
            moment, fisher = weighted_moments(batches)
            batches.clear()
            named = {kind: fisher_name(linear_name(layer, kind)) for kind in fisher} | {tap: weighted_name(layer, tap)}
            self._write({**fisher, tap: moment}, named, self._back_size)

    def _block(self, layer: int) -> tuple[dict[str, Any], blocks.Window]:
        windows = layer_windows(self._config, self._windows.shape[1])
        params = block_params(self._config, self._weights, layer, self._dtype)
        return jax.tree.map(jnp.asarray, params), None if windows is None else windows[layer]

    def _tensor(self, name: str) -> jax.Array:
        return jnp.asarray(self._weights[name], self._dtype)

    def _sums(self, names: Mapping[str, str]) -> Sums:
        return blocks.empty_sums({short: self._shapes[name] for short, name in names.items()}, self._dtype)

    def _write(self, sums: Sums, names: Mapping[str, str], count: int | None = None) -> None:
        for short, name in names.items():
            self._write_finished(name, finished(sums[short], count or self._windows.size, name))

    def _require_finite(self, layer: int) -> None:
        if not all(bool(jnp.isfinite(x).all()) for x in self._stream):
            raise OccError(
                f"layer {layer}: the activations of the calibration text are not finite; they overflow {self._dtype}, "
                "so check that the checkpoint is intact"
            )


def finished(sums: CompensatedSum, count: int, name: str) -> np.ndarray:
    """Mean of a sum over ``count`` tokens; of matrices, symmetric to the last bit.

    Raises:
        OccError: it has a NaN or an infinity.
    """
    statistic = sums.mean(count)
    if not np.isfinite(statistic).all():
        raise OccError(
            f"{name}: the statistics of the calibration text are not finite; the activations of this model overflow "
            f"{statistic.dtype}, so check that the checkpoint is intact"
        )
    return (statistic + statistic.T) / 2 if statistic.ndim == 2 else statistic


def batches_of(windows: Int[np.ndarray, "windows length"], batch_tokens: int) -> Iterator[slice]:
    """Rows of each batch: as few batches as ``batch_tokens`` allows, their sizes differing by one window at most.

    Example:
        >>> [(b.start, b.stop) for b in batches_of(np.zeros((7, 10), np.int32), 30)]
        [(0, 3), (3, 5), (5, 7)]
    """
    count, length = windows.shape
    number = -(-count // max(1, batch_tokens // length))
    ends = np.cumsum([count // number + (i < count % number) for i in range(number)])
    for begin, end in zip((0, *ends), ends):
        yield slice(int(begin), int(end))
