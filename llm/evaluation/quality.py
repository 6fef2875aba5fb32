r"""Perplexity and divergence from a reference, streamed window by window.

The vocabulary is large and the hidden states are small, so a reference is kept as its final hidden states and the
logits of both models exist only for a few hundred positions at a time.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..model import LanguageModel
from .windows import Windows

_POSITIONS = 256


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

    def hidden(self, tokens: Int[np.ndarray, " length"]) -> Float[Array, "length width"]:
        """Final hidden states of one window."""
        key = tokens.tobytes()
        if key in self._states:
            return jnp.asarray(self._states[key])
        states = self.model.hidden_states(tokens[None])[0]
        if self._keep:
            self._states[key] = np.asarray(states)
        return states


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

    with :math:`p` the reference and :math:`q` the model, in float32.

    Args:
        model: the candidate.
        windows: text to predict.
        reference: the uncompressed model, or ``None`` for perplexity alone.
        progress: wraps the windows to show how far the work has come.
    """
    started = time.perf_counter()
    nll, kl, agree = [], [], []
    for tokens in progress(windows.tokens):
        hidden = model.hidden_states(tokens[None])[0][:-1]
        targets = jnp.asarray(tokens[1:])
        if reference is None:
            nll.append(np.asarray(token_nll(hidden, model.head, targets)))
            continue
        scores = compare_tokens(hidden, model.head, reference.hidden(tokens)[:-1], reference.head, targets)
        for rows, values in zip((nll, kl, agree), scores, strict=True):
            rows.append(np.asarray(values))
    mean_nll = float(np.mean(nll, dtype=np.float64))
    divergence = _divergence(np.asarray(kl), np.asarray(agree)) if reference is not None else (None,) * 4
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
        kl_windows=tuple(float(np.mean(window, dtype=np.float64)) for window in kl),
    )


def _divergence(kl: Float[np.ndarray, "windows tokens"], agree: np.ndarray) -> tuple[float, float, float, float]:
    samples = kl.mean(1, dtype=np.float64) if len(kl) > 1 else kl[0].astype(np.float64)
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    return float(kl.mean(dtype=np.float64)), float(np.percentile(kl, 99)), float(error), float(agree.mean())


@jax.jit
def token_nll(
    hidden: Float[Array, "tokens width"], head: Float[Array, "vocab width"], targets: Int[Array, " tokens"]
) -> Float[Array, " tokens"]:
    """Negative log-likelihood of every target, nats; the logits of 256 positions exist at a time."""

    def chunk(x: Array, target: Array) -> Array:
        logits = _logits(x, head)
        return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, target)

    return _in_chunks(chunk, hidden, targets)


@jax.jit
def compare_tokens(
    hidden: Float[Array, "tokens width"],
    head: Float[Array, "vocab width"],
    reference_hidden: Float[Array, "tokens reference_width"],
    reference_head: Float[Array, "vocab reference_width"],
    targets: Int[Array, " tokens"],
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """Per token: negative log-likelihood and KL divergence (nats), and whether the first choices agree (0 or 1)."""

    def chunk(x: Array, x_ref: Array, target: Array) -> tuple[Array, Array, Array]:
        log_q, log_p = _log_probabilities(x, head), _log_probabilities(x_ref, reference_head)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
        agree = jnp.argmax(log_p, -1) == jnp.argmax(log_q, -1)
        return -_pick(log_q, target), kl, agree.astype(jnp.float32)

    return _in_chunks(chunk, hidden, reference_hidden, targets)


def _log_probabilities(x: Array, head: Array) -> Array:
    return jax.nn.log_softmax(_logits(x, head), axis=-1)


def _logits(x: Array, head: Array) -> Array:
    return jnp.matmul(x, head.T, preferred_element_type=jnp.float32)


def _pick(scores: Array, targets: Array) -> Array:
    return jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]


def _in_chunks(f: Callable, *rows: Array):
    """``f`` over chunks of the leading axis, the last one padded."""
    count = rows[0].shape[0]
    size = min(_POSITIONS, count)
    padded = [jnp.pad(r, [(0, -count % size)] + [(0, 0)] * (r.ndim - 1)) for r in rows]
    chunks = [r.reshape(-1, size, *r.shape[1:]) for r in padded]
    return jax.tree.map(lambda out: out.reshape(-1)[:count], jax.lax.map(lambda c: f(*c), tuple(chunks)))
