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
# # 2. Regimes of a real weight matrix
#
# A layer computes $y = W x$. With an orthonormal $T$ for its inputs,
#
# $$ W x = (W T^\top)(T x), $$
#
# so the rows of $W$ can be written in other coordinates without any change of the operator. What changes is the
# character of the numbers: **original** (a few large entries, unequal scales), **rotated** (flat, nearly Gaussian),
# **aligned** (concentrated). This notebook looks at one matrix of a language model in all of them. `occ analyze`
# does it for all matrices, with controls ([guide](../docs/guides/analyze.md)).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from occ_llm.analysis import open_subject
from occ_llm.analysis.outliers import measure_outliers
from occ_llm.analysis.regimes import HISTOGRAM_WIDTH, measure_regimes
from occ_llm.analysis.subject import to_coordinates
from occ_llm.calibration import calibrate, calibration_windows
from occ_llm.checkpoints import load_checkpoint
from occ_llm.figures import COLOURS, MARKERS, STYLE
from occ_llm.folding import fold_norms
from occ_llm.roles import is_linear

from occ_jax.learned import scale_field
from occ_jax.metrics import coding_gain_bits, kurtosis, sqnr_db
from occ_jax.quantization import fit_affine

plt.rcParams.update(STYLE)

MODEL = "tiny"  # the line to change: "smollm2-135m-q4_1" downloads 93 MB once

# %% [markdown]
# ## The matrix and the text
#
# We take the matrix with the heaviest tails. The norms are folded into the matrices first (QuaRot,
# [arXiv:2404.00456](https://arxiv.org/abs/2404.00456), section 3). The aligned coordinates are the KLT of the
# layer's inputs: the eigenvectors of $H = \mathbb{E}[x x^\top]$, measured on text. A discrete cosine transform
# (DCT) stands beside them as a contrast: it assumes that neighbouring channels are alike, which nothing promises
# here.

# %%
checkpoint = load_checkpoint(MODEL)
windows = calibration_windows(checkpoint.tokenizer, window=256, max_windows=8)
key = jax.random.key(0)
statistics = calibrate(checkpoint.config, checkpoint.weights, windows, key=key, fisher=False)

folded = fold_norms(checkpoint.config, checkpoint.weights)
name = max((n for n in folded if is_linear(n)), key=lambda n: float(kurtosis(jnp.asarray(folded[n]))))

with open_subject(checkpoint.config, checkpoint.weights, statistics, key=key) as subject:
    w = jnp.asarray(subject.weights[name])
    systems = subject.systems
    regimes, histograms = measure_regimes(subject, [name])
    outliers = {found.coordinates: found for found in measure_outliers(subject, [name])}
    transforms = {system: subject.transform(name, system) for system in systems}

print(f"{name} of {checkpoint.name}: {w.shape[0]} x {w.shape[1]}, a norm of {float(jnp.linalg.norm(w)):.2f}")
by_system = {regime.coordinates: regime for regime in regimes}
assert all(regime.norm_departure < 1e-4 for regime in regimes), "orthonormal coordinates keep the norm"

# %% [markdown]
# ## The histogram is a property of the coordinates
#
# Kurtosis, $\kappa = \mathbb{E}[y^4] / \mathbb{E}[y^2]^2$, is 3 for a Gaussian. A rotation makes every entry a sum
# of many, and so nearly Gaussian, whatever was there before (QuIP#,
# [arXiv:2402.04396](https://arxiv.org/abs/2402.04396)).

# %%
figure, axes = plt.subplots(figsize=(7.5, 4))
for index, histogram in enumerate(histograms):
    centres = (np.arange(len(histogram.density)) + 0.5) * HISTOGRAM_WIDTH
    seen = histogram.density > 0
    style = {"color": COLOURS[index], "marker": MARKERS[index], "markevery": 4}
    axes.plot(centres[seen], histogram.density[seen], label=histogram.coordinates, **style)
gaussian = np.sqrt(2 / np.pi) * np.exp(-(centres**2) / 2)
shown = gaussian > 1e-6
axes.plot(centres[shown], gaussian[shown], color="black", linestyle=":", label="Gaussian")
axes.set_yscale("log")
axes.set_xlabel("magnitude (in root mean squares of the matrix)")
axes.set_ylabel("density")
tails = {system: by_system[system].kurtosis for system in systems}
axes.set_title(f"Kurtosis {tails['identity']:.1f} in the original channels, {tails['hadamard']:.1f} after a rotation")
axes.legend()
plt.show()

# %% [markdown]
# ## Outliers
#
# The largest 0.1 % of the entries. How many entries are still above the same threshold in other coordinates, and
# how many would be if every row were Gaussian with its own energy?

# %%
for system, found in outliers.items():
    if system != "identity":
        print(f"{system:9} {found.survivors:6.0%} are left, {found.expected_survivors:.0%} expected of Gaussian rows")

# %% [markdown]
# ## Heavy tails are unequal scales
#
# The simplest model of a spiky matrix is a field of scales times Gaussian noise,
#
# $$ w_{ij} = \alpha_i \beta_j\, z_{ij}, \qquad z_{ij} \sim \mathcal N(0, 1). $$
#
# Divide by the scales of rows and columns, and the tails should be gone in *every* coordinate system. The scales
# are worth $\tfrac12 \log_2 \overline{\sigma^2} - \overline{\log_2 \sigma}$ bits per weight to a coder that knows
# them, the coding gain of the field (Jayant & Noll, *Digital Coding of Waveforms*, 1984, chapter 12). See
# [Coordinate-relative outliers](../docs/theory/coordinate_relative_outliers.md).

# %%
coefficients = {system: to_coordinates(transforms[system], w) for system in systems}
gains = {}
print("coordinates  kurtosis  after scales   scales are worth")
for system, y in coefficients.items():
    rows, columns = scale_field(y)
    variances = rows * columns
    gains[system] = float(coding_gain_bits(variances.ravel()))
    left = float(kurtosis(y / jnp.sqrt(variances)))
    print(f"{system:12} {tails[system]:8.2f} {left:13.2f} {gains[system]:11.3f} bit per weight")

# %% [markdown]
# ## Who gains by a rotation?
#
# Two quantizers at the same coordinates. An **entropy coder** that knows the scale of each row and column: what
# counts is its rate at equal distortion, in real coded bytes, scales included. **Integers** of 4 bits in groups of
# 32 with one scale each, without a coder: what counts is their error. The coder can use unequal scales, integers
# suffer from them. So a rotation should help one and hurt the other; the figure shows whether it does here.

# %%
rates = {system: by_system[system].rate_bits for system in systems}
errors = {}
for system, y in coefficients.items():
    quantizer = fit_affine(y, 4, group_size=32)
    errors[system] = float(sqnr_db(y, quantizer.dequantize(quantizer.quantize(y))))

figure, panels = plt.subplots(1, 2, figsize=(10, 3.8))
for axes, values, label in (
    (panels[0], rates, "coded bytes (bits per weight)"),
    (panels[1], errors, "INT4 groups: signal to error (dB)"),
):
    for index, value in enumerate(values.values()):
        axes.plot(value, index, color=COLOURS[index], marker=MARKERS[index], markersize=9)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(label)
panels[0].set_title(f"Entropy coder: fewest bits in {min(rates, key=rates.get)}")
panels[1].set_title(f"Integers: least error in {max(errors, key=errors.get)}")
plt.show()

cost, help_db = rates["hadamard"] - rates["identity"], errors["hadamard"] - errors["identity"]
print(f"a Hadamard rotation changes the coder's rate by {cost:+.3f} bit and the integers' ratio by {help_db:+.2f} dB")

# %% [markdown]
# ## Things to try
#
# - Another matrix: set `name`, `occ_llm.roles.linear_name(layer=2, kind="q")` for example. Which kinds have heavy
#   tails? For which of them is a rotation free?
# - A larger model: `MODEL = "smollm2-135m-q4_1"`. Are its tails heavier?
# - Integers in groups of 128 or 8: where does a rotation cease to help?
# - All matrices, with controls and a page to read: `occ analyze tiny analysis`.
