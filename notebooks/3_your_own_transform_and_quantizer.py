# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Your own transform and your own rounding rule
#
# The library separates the parts of a compressor so that each can be exchanged by itself:
#
#     weights --Transform--> coefficients --Quantizer--> integers --EntropyModel + rANS--> bytes
#
# Here you write two of them, put them into the network, and see the rate-distortion curve move: bits per weight of
# coded tensors against the Kullback-Leibler divergence of the network that is decoded from them,
#
# $$ D = \frac1N \sum_t \sum_v p_t(v) \log \frac{p_t(v)}{\hat p_t(v)} \quad \text{nats per token.} $$

# %%
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, Int32, Key
from occ_llm.checkpoints import load_checkpoint
from occ_llm.evaluation import Reference, cut_windows, evaluate
from occ_llm.figures import COLOURS, MARKERS, STYLE
from occ_llm.folding import fold_norms
from occ_llm.model import LanguageModel
from occ_llm.roles import is_linear
from occ_llm.text import python_text

from occ_jax._pytree import pytree_dataclass
from occ_jax.codec import (
    Lattice,
    Levels,
    decode_tensor,
    decode_tensors,
    encode_lattices,
    encode_tensor,
    open_container,
    scalar_codebook,
    write_container,
)
from occ_jax.metrics import gaussian_rate, mse
from occ_jax.quantization import DeadZone, Quantizer, Uniform
from occ_jax.quantization.base import to_index, uniform_noise
from occ_jax.transforms import Transform, identity, random_hadamard

plt.rcParams.update(STYLE)

MODEL = "tiny"  # the line to change: "smollm2-135m-q4_1" takes much longer

# %% [markdown]
# ## A transform
#
# An invertible linear map of the last axis. Array fields are parameters: a decoder needs them, and they would have
# to be counted. This one has none. It takes neighbouring channels as pairs and writes their sum and their
# difference, one level of the Haar wavelet (Haar, *Zur Theorie der orthogonalen Funktionensysteme*, 1910):
#
# $$ s_k = \frac{x_{2k} + x_{2k+1}}{\sqrt2}, \qquad d_k = \frac{x_{2k} - x_{2k+1}}{\sqrt2} . $$
#
# If neighbouring channels were alike, the differences would be small and cheap.


# %%
@pytree_dataclass
class SumsAndDifferences(Transform):
    """Sums of neighbours, then their differences; a last channel without a neighbour stays as it is."""

    @property
    def is_orthonormal(self) -> bool:
        """Always true: a squared error is the same before and after."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Sums and differences."""
        n = x.shape[-1] // 2 * 2
        first, second = x[..., 0:n:2], x[..., 1:n:2]
        return jnp.concatenate([(first + second) * 0.5**0.5, (first - second) * 0.5**0.5, x[..., n:]], axis=-1)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The channels in their places."""
        half = y.shape[-1] // 2
        sums, differences = y[..., :half], y[..., half : 2 * half]
        pairs = jnp.stack([(sums + differences) * 0.5**0.5, (sums - differences) * 0.5**0.5], axis=-1)
        return jnp.concatenate([pairs.reshape(*y.shape[:-1], 2 * half), y[..., 2 * half :]], axis=-1)


x = jax.random.normal(jax.random.key(0), (4, 7))
y = SumsAndDifferences().forward(x)
assert jnp.allclose(SumsAndDifferences().inverse(y), x, atol=1e-6), "invertible, also at odd sizes"
assert jnp.allclose(jnp.square(y).sum(), jnp.square(x).sum()), "Parseval"

# %% [markdown]
# ## A rounding rule
#
# A quantizer maps coefficients to integers and back. This one rounds to the nearest level, but everything below a
# threshold to zero:
#
# $$ q = \begin{cases} 0 & |y| < t\,\Delta \\ \operatorname{round}(y / \Delta) & \text{otherwise} \end{cases},
#    \qquad \hat y = \Delta\, q . $$
#
# With $t = \tfrac12$ it is the uniform quantizer. A larger $t$ makes a larger error and more zeros, which an
# entropy coder writes in few bits: the question is which of the two wins. (The library's `DeadZone` moves *all*
# thresholds; Sullivan, *Efficient scalar quantization of exponential and Laplacian random variables*, 1996.)
# `relax` is the differentiable stand-in that training uses. A decoder does not need to know how an integer was
# chosen, so the codec takes the rule as it is.


# %%
@pytree_dataclass
class Thresholded(Quantizer):
    """Round to the nearest multiple of the step, and what is smaller than the threshold to zero."""

    step: Float[Array, ""]
    threshold: Float[Array, ""]

    def quantize(self, y: Float[Array, "..."]) -> Int32[Array, "..."]:
        """Zero below the threshold."""
        z = y / self.step
        return to_index(jnp.where(jnp.abs(z) < self.threshold, 0, jnp.round(z)))

    def dequantize(self, q: Int32[Array, "..."]) -> Float[Array, "..."]:
        """``step * q``."""
        return self.step * q.astype(self.step.dtype)

    def relax(self, y: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
        """Noise in the place of rounding."""
        return uniform_noise(y / self.step, key=key)


levels = jnp.arange(-3, 4)
rule = Thresholded(jnp.array(0.5), jnp.array(0.6))
assert (rule.quantize(rule.dequantize(levels)) == levels).all(), "reconstruction points are fixed points"

# %% [markdown]
# One matrix, one step: `encode_tensor` quantizes and codes, and `num_bits` counts everything that a decoder needs.
# A Gaussian source needs at least $R(D) = \tfrac12 \log_2 \sigma^2 / D$ bits (Cover & Thomas, theorem 10.3.2); the
# distance from there sees both, rate and error.

# %%
checkpoint = load_checkpoint(MODEL)
weights = dict(fold_norms(checkpoint.config, checkpoint.weights))
linears = [name for name in weights if is_linear(name)]

w = jnp.asarray(weights[linears[-1]])
step = 0.7 * jnp.sqrt(jnp.square(w).mean())
for quantizer in Uniform(step), DeadZone(step, jnp.array(1 / 3)), Thresholded(step, jnp.array(0.6)):
    coded = encode_tensor(w, quantizer)
    bits, error = coded.num_bits / w.size, float(mse(w, jnp.asarray(decode_tensor(coded))))
    limit = float(gaussian_rate(error, float(jnp.square(w).mean())))
    print(f"{type(quantizer).__name__:11} {bits:.3f} bits per weight, {bits - limit:.3f} above the Gaussian limit")

# %% [markdown]
# ## The network
#
# Every matrix of a linear layer is transformed along its inputs and quantized with one step, a multiple of its root
# mean square. All matrices share one table and go into one file; what counts are the bytes of that file. It is
# decoded, transformed back and put into the network, and the divergence is measured on text that the model has not
# seen.

# %%
windows = cut_windows(python_text("heldout"), checkpoint.tokenizer, window=512, max_windows=2)
reference = Reference(LanguageModel.from_weights(checkpoint.config, weights))
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "weights.safetensors"

Coordinates = Callable[[int], Transform]  # a transform for vectors of a given length
Rule = Callable[[Array], Quantizer]  # a quantizer with a given step


def rate_and_divergence(coordinates: Coordinates, rule: Rule, step_rms: float) -> tuple[float, float]:
    """Bits per weight of a file with all matrices, and what the network decoded from it has lost."""
    transforms = {name: coordinates(weights[name].shape[1]) for name in linears}
    lattices = []
    for name in linears:
        step = jnp.float32(step_rms * np.sqrt(np.square(weights[name]).mean()))
        q = rule(step).quantize(transforms[name].forward(jnp.asarray(weights[name])))
        lattices.append(Lattice(np.asarray(q), Levels.constant(float(step), q.shape)))
    codebook = scalar_codebook(np.concatenate([lattice.q.ravel() for lattice in lattices]))
    coded = encode_lattices(lattices, codebook, lane_symbols=1 << 10)
    write_container(file, dict(zip(linears, coded, strict=True)))
    with open_container(file) as container:
        decoded = dict(zip(linears, decode_tensors([container[name] for name in linears]), strict=True))
    changed = weights | {n: np.asarray(transforms[n].inverse(jnp.asarray(y))) for n, y in decoded.items()}
    quality = evaluate(LanguageModel.from_weights(checkpoint.config, changed), windows, reference=reference)
    return 8 * file.stat().st_size / sum(weights[name].size for name in linears), quality.kl_mean


def rotation(n: int) -> Transform:
    """A Hadamard transform with random signs, the same for all matrices of one width."""
    return random_hadamard(n, key=jax.random.key(n))


# %% [markdown]
# ## The curves

# %%
variants: dict[str, tuple[Coordinates, Rule]] = {
    "original, uniform": (lambda n: identity(), Uniform),
    "original, dead zone 1/3": (lambda n: identity(), lambda step: DeadZone(step, jnp.array(1 / 3))),
    "original, my threshold": (lambda n: identity(), lambda step: Thresholded(step, jnp.array(0.6))),
    "my transform, uniform": (lambda n: SumsAndDifferences(), Uniform),
    "Hadamard, uniform": (rotation, Uniform),
}
curves = {name: [rate_and_divergence(*parts, step) for step in (0.4, 0.7, 1.2)] for name, parts in variants.items()}


def divergence_at(bits: float, curve: list[tuple[float, float]]) -> float:
    """Divergence at a rate, interpolated in its logarithm."""
    rates, divergences = np.array(sorted(curve)).T
    return float(np.exp(np.interp(bits, rates, np.log(divergences))))


# %%
RATE = 2.5
found = {name: divergence_at(RATE, curve) for name, curve in curves.items()}
best = min(found, key=found.get)
figure, axes = plt.subplots(figsize=(7.5, 4.5))
for index, (name, curve) in enumerate(curves.items()):
    axes.plot(*zip(*curve, strict=True), color=COLOURS[index], marker=MARKERS[index], label=name)
axes.set_yscale("log")
axes.set_xlabel("bits per weight of the linear layers (bytes of the file)")
axes.set_ylabel("KL divergence (nats per token)")
axes.set_title(f"{checkpoint.name}: least divergence at {RATE} bits with {best}")
axes.legend()
plt.show()

for name, divergence in found.items():
    change = divergence / found["original, uniform"] - 1
    print(f"{name:24} KL {divergence:.4f} at {RATE} bits ({change:+.1%} against original, uniform)")

# %% [markdown]
# The comparison is made at equal bits, not at equal step. A rule that only moves along the same curve has gained
# nothing. And these quantizers are the simplest that there are: `occ compress` adds error feedback, steps by
# sensitivity and a trellis.
#
# ## Things to try
#
# - Move the threshold: 0.55, 0.7, 0.9. Is there one that beats the dead zone?
# - Chain your transform with itself (`occ_jax.transforms.chain`), or with a Hadamard transform.
# - Put the trick into the codec: let `rdo_round` (`occ_jax.quantization`) choose between neighbours by their true
#   code lengths.
# - Give your transform a name in the file format, so that files can hold it: [a transform in five
#   steps](../CONTRIBUTING.md#a-transform-in-five-steps).
