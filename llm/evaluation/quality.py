r"""Perplexity and divergence from a reference, streamed window by window.

The vocabulary is large and the hidden states are small, so a reference is kept as its final hidden states and the
logits of both models exist only for a few hundred positions at a time.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from occ_jax.quantization.row_parallel import Devices, over_rows

from ..model import LanguageModel
from .windows import Windows, check_tokens

_COPIES_BYTES = 1 << 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """What :func:`evaluate` measures; the fields of ``occ evaluate --json``.

    Attributes:
        perplexity: ``exp(nll)``.
        nll: mean negative log-likelihood, nats per predicted token.
        bits_per_byte: total code length of the predicted text in bits, over its UTF-8 bytes.
        kl_mean: mean Kullback-Leibler divergence from the reference to the model, nats per token.
        kl_p99: its 99th percentile over tokens.
        kl_se: standard error of ``kl_mean``: over windows, as tokens of a window are correlated; over tokens if there
            is but one window.
        top1_agreement: share of positions at which both models prefer the same token.
        windows: number of windows.
        tokens: number of predicted tokens.
        seconds: wall time.
        kl_windows: mean divergence of each window, for paired comparisons of two models on the same text.
    """

    perplexity: float
    nll: float
    bits_per_byte: float
    kl_mean: float | None
    kl_p99: float | None
    kl_se: float | None
    top1_agreement: float | None
    windows: int
    tokens: int
    seconds: float
    kl_windows: tuple[float, ...] = ()


class Reference:
    """A reference model that can remember its hidden states, to compare many candidates on the same windows.

    Args:
        model: the uncompressed model.
        keep: remember the states of every window (``width * 4`` bytes a token) instead of computing them again.
    """

    def __init__(self, model: LanguageModel, *, keep: bool = True):
        self.model = model
        self._keep = keep
        self._states: dict[bytes, np.ndarray] = {}

    @property
    def head(self) -> Float[Array, "vocab width"]:
        """Output matrix of the reference."""
        return self.model.head

    def hidden(
        self, tokens: Int[np.ndarray, "windows length"], *, devices: Devices = None
    ) -> Float[Array, "windows length width"]:
        """Final hidden states of some windows."""
        keys = [row.tobytes() for row in tokens]
        if all(key in self._states for key in keys):
            return jnp.asarray(np.stack([self._states[key] for key in keys]))
        states = self.model.hidden_states(tokens, devices=devices)
        if self._keep:
            self._states |= dict(zip(keys, np.asarray(states), strict=True))
        return states

    def spread(self, devices: Devices) -> None:
        """Keep a copy of the parameters on each of these devices from now on."""
        self.model = self.model.on(devices)


def evaluate(
    model: LanguageModel,
    windows: Windows,
    *,
    reference: Reference | None = None,
    progress: Callable[[Iterable], Iterable] = lambda rows: rows,
) -> Quality:
    r"""Mean negative log-likelihood over all predictions and, given a reference, the divergence from it.

    .. math::

        D = \frac{1}{N} \sum_t \sum_v p_t(v) \log \frac{p_t(v)}{q_t(v)}

    with :math:`p` the reference and :math:`q` the model, in float32. Devices share the windows.

    Args:
        model: the candidate.
        windows: text to predict.
        reference: the uncompressed model, or ``None`` for perplexity alone. Its own model may be evaluated too: what it
            remembers is not computed again.
        progress: wraps groups of windows to show how far the work has come.

    Raises:
        OccError: the text has tokens that the model does not know.
    """
    started = time.perf_counter()
    check_tokens(windows.tokens, len(model.head), "the text")
    devices = _devices(model, len(windows.tokens))
    itself = reference if reference is not None and model is reference.model else None
    if reference is not None:
        reference.spread(devices)
    model = model.on(devices) if itself is None else itself.model
    groups = _groups(windows.tokens, 1 if devices is None else len(devices))
    nll, kl, agree = [], [], []
    for tokens in progress(groups):
        source = model.hidden_states if itself is None else itself.hidden
        hidden, targets = source(tokens, devices=devices)[:, :-1], jnp.asarray(tokens[:, 1:])
        if reference is None:
            nll.append(np.asarray(token_nll(hidden, model.head, targets, devices=devices)))
            continue
        states = hidden if itself is not None else reference.hidden(tokens, devices=devices)[:, :-1]
        scores = compare_tokens(hidden, model.head, states, reference.head, targets, devices=devices)
        for rows, values in zip((nll, kl, agree), scores, strict=True):
            rows.append(np.asarray(values))
    measured = [np.concatenate(rows)[: len(windows.tokens)] for rows in (nll, kl, agree) if rows]
    mean_nll = float(np.mean(measured[0], dtype=np.float64))
    divergence = (None,) * 4 if reference is None else _divergence(*measured[1:])
    return Quality(
        perplexity=float(np.exp(mean_nll)),
        nll=mean_nll,
        bits_per_byte=float(mean_nll * windows.num_predictions / np.log(2) / windows.num_bytes),
        kl_mean=divergence[0],
        kl_p99=divergence[1],
        kl_se=divergence[2],
        top1_agreement=divergence[3],
        windows=len(windows.tokens),
        tokens=windows.num_predictions,
        seconds=time.perf_counter() - started,
        kl_windows=() if reference is None else tuple(measured[1].mean(1, dtype=np.float64).tolist()),
    )


def _groups(tokens: Int[np.ndarray, "windows length"], size: int) -> list[Int[np.ndarray, "group length"]]:
    """Windows that are evaluated together; the last group is filled up, so that all have one shape."""
    filled = np.concatenate([tokens, np.repeat(tokens[:1], -len(tokens) % size, axis=0)])
    return list(filled.reshape(-1, size, tokens.shape[1]))


def _devices(model: LanguageModel, num_windows: int) -> Devices:
    """Devices that share the windows: all, unless the copies of the parameters would crowd the host's memory."""
    devices = tuple(jax.devices()[:num_windows])
    copies = (len(devices) - 1) * sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    crowded = jax.default_backend() == "cpu" and copies > _COPIES_BYTES
    return None if crowded or len(devices) == 1 else devices


def _divergence(kl: Float[np.ndarray, "windows tokens"], agree: np.ndarray) -> tuple[float, float, float, float]:
    samples = kl.mean(1, dtype=np.float64) if len(kl) > 1 else kl[0].astype(np.float64)
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    return float(kl.mean(dtype=np.float64)), float(np.percentile(kl, 99)), float(error), float(agree.mean())


@partial(jax.jit, static_argnames="devices")
def token_nll(
    hidden: Float[Array, "windows length width"],
    head: Float[Array, "vocab width"],
    targets: Int[Array, "windows length"],
    *,
    devices: Devices = None,
) -> Float[Array, "windows length"]:
    """Negative log-likelihood of every target, nats; the logits of 256 positions exist at a time."""

    def chunk(head: Array, x: Array, target: Array) -> Array:
        logits = jnp.matmul(x, head.T, precision="highest", preferred_element_type=jnp.float32)
        highest = logits.max(axis=1, keepdims=True)
        # A product with ones is a faster sum than a reduction: it reads each exponential where it was computed.
        total = jnp.matmul(jnp.exp(logits - highest), jnp.ones((head.shape[0], 1), logits.dtype), precision="highest")
        return (highest + jnp.log(total) - jnp.take_along_axis(logits, target[:, None], axis=1))[:, 0]

    return over_rows(partial(_in_chunks, chunk, 256), devices)((hidden, targets), head)


@partial(jax.jit, static_argnames="devices")
def compare_tokens(
    hidden: Float[Array, "windows length width"],
    head: Float[Array, "vocab width"],
    reference_hidden: Float[Array, "windows length reference_width"],
    reference_head: Float[Array, "vocab reference_width"],
    targets: Int[Array, "windows length"],
    *,
    devices: Devices = None,
) -> tuple[Float[Array, "windows length"], Float[Array, "windows length"], Float[Array, "windows length"]]:
    r"""Per token: negative log-likelihood and KL divergence (nats), and whether the first choices agree (0 or 1).

    The logits of 128 positions exist at a time, side by side in memory, so that sums over the vocabulary run over all
    of them at once.

    With logits :math:`a, b` less their maxima, :math:`Z = \sum_v e^{a_v}`, and :math:`Z'` likewise of :math:`b`,

    .. math::

        D = \frac{1}{Z} \sum_v e^{a_v} (a_v - b_v) - \log Z + \log Z'
    """

    def chunk(heads: tuple[Array, Array], x: Array, x_ref: Array, target: Array) -> tuple[Array, Array, Array]:
        a, b = (
            jnp.matmul(head, states.T, precision="highest", preferred_element_type=jnp.float32)
            for head, states in ((heads[1], x_ref), (heads[0], x))
        )
        a, b = a - a.max(axis=0, keepdims=True), b - b.max(axis=0, keepdims=True)
        p, log_b = jnp.exp(a), jnp.log(jnp.exp(b).sum(axis=0))
        z = p.sum(axis=0)
        kl = (p * (a - b)).sum(axis=0) / z - jnp.log(z) + log_b
        agree = ((a == 0) & (b == 0)).any(axis=0)
        return log_b - jnp.take_along_axis(b, target[None, :], axis=0)[0], kl, agree.astype(jnp.float32)

    rows = (hidden, reference_hidden, targets)
    return over_rows(partial(_in_chunks, chunk, 128), devices)(rows, (head, reference_head))


def _in_chunks(f: Callable, positions: int, rows: tuple[Array, ...], shared: Any) -> Any:
    """``f(shared, ...)`` over chunks of the positions of all windows, the last one padded."""
    windows, length = rows[0].shape[:2]
    count = windows * length
    size = min(positions, count)
    flat = [row.reshape(count, *row.shape[2:]) for row in rows]
    padded = [jnp.pad(row, [(0, -count % size)] + [(0, 0)] * (row.ndim - 1)) for row in flat]
    chunks = tuple(row.reshape(-1, size, *row.shape[1:]) for row in padded)
    scores = jax.lax.map(lambda chunk: f(shared, *chunk), chunks)
    return jax.tree.map(lambda out: out.reshape(-1)[:count].reshape(windows, length), scores)
