r"""Finishing: what stays in floats is tuned to the original network once all indices are fixed.

The rounding of one matrix is answered by the scales of the others: with :math:`s` the logarithm of one factor per row
of every linear layer and :math:`\gamma` the gains of the norms,

.. math::

    \min_{s, \gamma} \ \mathbb{E}_x \, D_{KL}\big( p(\cdot \mid x) \,\|\, p_{s, \gamma}(\cdot \mid x) \big)

by Adam over windows of calibration text, :math:`p` being the original. No gradient of a weight is formed: a factor of
a row of :math:`W` is a factor of one output of the layer, so a step costs a forward pass and the backward pass of the
activations. In the file the factors move the rows' steps by finer levels (:func:`~occ_jax.codec.with_row_factors`), and
gains are float16.

References:
    Tseng et al., QuIP#, arXiv 2402.04396, section 5, and Egiazarian et al., AQLM, arXiv 2401.06118, section 3.4 (tuning
    of the parameters that stay in floats, towards the original's outputs).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from occ_jax.learned.progress import fingerprint, read_state, write_state

from ..config import ModelConfig
from ..model import LINEARS, LanguageModel, attach_factor, mean_divergence, observe, projection_rows
from ..model import head as output_matrix
from ..roles import ATTENTION_NORM, FINAL_NORM, MLP_NORM
from ..scratch import Clock

KEPT_BYTES = 2 << 30
"""Activations that are kept for the backward pass; where they would take more, blocks are computed a second time."""

_NORMS = {"attention_norm": ATTENTION_NORM, "mlp_norm": MLP_NORM}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishSettings:
    """How long and how fast to tune."""

    steps: int = 48
    """Steps of Adam, one window each."""
    window: int = 512
    """Tokens of a step."""
    learning_rate: float = 4e-3
    """At the beginning; falls to zero along a cosine."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """The outcome.

    Attributes:
        row_factors: factor of every row, by name of the matrix.
        gains: of the norms, by name.
        kl: divergence on the window of each step, before that step, nats per token.
    """

    row_factors: dict[str, Float[np.ndarray, " d_out"]]
    gains: dict[str, Float[np.ndarray, " width"]]
    kl: Float[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What the original network predicts for some windows.

    Attributes:
        tokens: the windows.
        hidden: its final hidden states.
        head: its output matrix.
    """

    tokens: Int[np.ndarray, "windows length"]
    hidden: Float[np.ndarray, "windows length width"]
    head: Float[Array, "vocab width"]


def predict(
    original: LanguageModel,
    tokens: Int[np.ndarray, "windows length"],
    progress: Callable[[Iterable], Iterable] = lambda rows: rows,
) -> Target:
    """Run the original network over the windows once."""
    hidden = [np.asarray(original.hidden_states(row[None])[0]) for row in progress(tokens)]
    return Target(tokens=tokens, hidden=np.stack(hidden), head=original.head)


def cut_shorter(tokens: Int[np.ndarray, "windows length"], window: int) -> Int[np.ndarray, "more shorter"]:
    """Cut every window into shorter ones; the remainder of each is dropped."""
    window = min(window, tokens.shape[1])
    return tokens[:, : tokens.shape[1] // window * window].reshape(-1, window)


def finish(
    model: LanguageModel,
    target: Target,
    settings: FinishSettings,
    *,
    final_gain: bool,
    state: Path | None = None,
    progress: Callable[[Iterable], Iterable] = lambda steps: steps,
) -> Tuned:
    """Tune row factors and gains of a quantized network.

    Args:
        model: the quantized network, dense.
        target: the original's predictions on calibration windows; they are visited in turn, in shuffled order.
        settings: how long and how fast.
        final_gain: whether the gain of the final norm is one of the parameters.
        state: a file, for this model and target alone, that keeps how far the tuning has come: it goes on from there,
            to the same result.
        progress: wraps the steps to show how far the work has come.
    """
    parameters = _initial(model, final_gain)
    tuning = parameters, _optimizer(settings).init(parameters), np.zeros(settings.steps, np.float32)
    identity = fingerprint(settings.steps, jax.random.key(0), tuning)
    done = 0
    if state is not None:
        with contextlib.suppress(ValueError):  # what cannot be read is done again
            done, tuning = read_state(state, tuning, identity)
    remat = activation_bytes(model.config, target.tokens.shape[1]) > KEPT_BYTES
    step = partial(_step, graphdef=model.graphdef, settings=settings, remat=remat)
    (parameters, moments, kl), clock = tuning, Clock()
    kl = np.array(kl)
    for window in progress(list(visits(len(target.tokens), settings.steps))[done:]):
        tokens, hidden = jnp.asarray(target.tokens[window]), jnp.asarray(target.hidden[window])
        parameters, moments, kl[done] = step(parameters, moments, model.params, target.head, tokens, hidden)
        done += 1
        if state is not None and (done == settings.steps or clock.strikes()):
            write_state(state, done, (parameters, moments, kl), identity)
    return _tuned(model, jax.tree.map(np.asarray, parameters), kl)


def _optimizer(settings: FinishSettings) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps), b2=0.95)


@partial(jax.jit, static_argnames=("graphdef", "settings", "remat"))
def _step(
    parameters: Any,
    state: optax.OptState,
    params: Mapping[str, Any],
    head: Float[Array, "vocab width"],
    tokens: Int[Array, " length"],
    hidden: Float[Array, "length width"],
    *,
    graphdef: Any,
    settings: FinishSettings,
    remat: bool,
) -> tuple[Any, optax.OptState, Float[Array, ""]]:
    """One update, and the divergence before it; compiled once for all files of a model."""
    divergence, gradient = jax.value_and_grad(_divergence)(
        parameters, graphdef, params, head, tokens, hidden, remat=remat
    )
    with jax.numpy_dtype_promotion("standard"):
        updates, state = _optimizer(settings).update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state, divergence


def activation_bytes(config: ModelConfig, length: int) -> int:
    """About what all blocks keep of one window for a backward pass, in float32."""
    per_token = 8 * config.hidden_size + 6 * config.intermediate_size + 2 * config.num_heads * length
    return 4 * config.num_layers * length * per_token


def _initial(model: LanguageModel, final_gain: bool) -> dict[str, Any]:
    """Logarithms of row factors and of gains relative to what they are: all zero."""
    blocks = model.params["blocks"]
    rows = {name: jnp.zeros(blocks[name]["weight"].shape[:2]) for name in LINEARS}
    norms = {name: jnp.zeros_like(blocks[name]["gain"]) for name in _NORMS}
    return {"rows": rows, "norms": norms} | (
        {"final": jnp.zeros_like(model.params["norm"]["gain"])} if final_gain else {}
    )


def _divergence(
    parameters: Mapping[str, Any],
    graphdef: Any,
    params: Mapping[str, Any],
    head: Float[Array, "vocab width"],
    tokens: Int[Array, " length"],
    hidden: Float[Array, "length width"],
    *,
    remat: bool,
) -> Float[Array, ""]:
    """Mean divergence of one window from the original's predictions."""
    blocks = dict(params["blocks"])
    for name, logarithm in parameters["norms"].items():
        blocks[name] = {"gain": blocks[name]["gain"] * jnp.exp(logarithm)}
    moved = {**params, "blocks": blocks}
    if "final" in parameters:
        moved["norm"] = {"gain": params["norm"]["gain"] * jnp.exp(parameters["final"])}
    states, _ = observe(
        graphdef,
        moved,
        tokens[None],
        reduce=lambda taps: None,
        probes=parameters["rows"],
        attach=attach_factor,
        remat=remat,
    )
    return mean_divergence(states[0], output_matrix(params), hidden, head)


def visits(count: int, steps: int) -> Iterator[int]:
    """Windows in shuffled order, all of them before one comes again; the same on every machine."""
    order = np.random.default_rng(0)
    for first in range(0, steps, count):
        yield from order.permutation(count)[: steps - first].tolist()


def _tuned(model: LanguageModel, parameters: Mapping[str, Any], kl: Float[np.ndarray, " steps"]) -> Tuned:
    layers = range(model.config.num_layers)
    factors = {
        f"model.layers.{layer}.{projection}.weight": np.exp(parameters["rows"][linear][layer][rows].astype(np.float64))
        for layer in layers
        for projection, (linear, rows) in projection_rows(model.config).items()
    }
    gains = {
        pattern.format(layer): np.asarray(model.params["blocks"][norm]["gain"][layer])
        * np.exp(parameters["norms"][norm][layer])
        for layer in layers
        for norm, pattern in _NORMS.items()
    }
    if "final" in parameters:
        gains[FINAL_NORM] = np.asarray(model.params["norm"]["gain"]) * np.exp(parameters["final"])
    return Tuned(row_factors=factors, gains=gains, kl=kl)
