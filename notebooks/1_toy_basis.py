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
# # 1. One function, many bases
#
# A function does not change when it is written in another basis. The list of its numbers does:
#
# $$ f = \Phi\,\theta, \qquad y = \theta A, \qquad \theta = y B . $$
#
# With the numbers change their histogram, the sensitivity of each of them, and the bytes of a file that holds them.
# Here the function is known completely, so that we can see how much of the cost belongs to the function and how
# much to the basis. The experiment is described, with predictions that were written before the first run, in [One
# function, many bases](../docs/experiments/toy_basis_vs_mlp.md); `occ toy` runs all of it.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from occ_llm.figures import STYLE
from occ_toy.bases import BASES
from occ_toy.experiment import LEVELS, Protocol, Results, measure
from occ_toy.figures import source_figure
from occ_toy.invariance import compare, linear_pairs, rotate_between
from occ_toy.predictions import outcomes
from occ_toy.representations import fit_basis, fit_networks
from occ_toy.sources import SOURCES

from occ_jax.metrics import rate_at_distortion

plt.rcParams.update(STYLE)

SOURCE = "bandlimited"  # the line to change: sawtooth, chirp, piecewise, ar1, patch, convolution, integral
source = SOURCES[SOURCE]
protocol = Protocol(sources=(SOURCE,), draws=16, others=512, seeds=1, steps=300, widths=(16,))

# %% [markdown]
# ## The source
#
# One formula has a very short description: the formula. A code is made for a *source*, a family of functions that
# share a structure. Sixteen draws are coded together; other draws say what is typical.

# %%
draws = source.draw(protocol.draws, stream=0)
neighbours = np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]
figure, axes = plt.subplots(figsize=(7, 2.8))
axes.plot(draws[:3].T)
axes.set_xlabel("number of the value")
axes.set_ylabel("value")
axes.set_title(f"{source.title}: neighbouring values correlate {neighbours:.2f}")
plt.show()

# %% [markdown]
# ## The same draws in five bases
#
# Each basis takes as few coefficients as it needs for a relative error of $10^{-3}$ (or all 256, where it never
# gets there). *Kurtosis* is 3 for a Gaussian; more means that a few numbers are much larger than the others.
#
# Every representation is then coded in several coordinates: **original**, as it is; **rotated** by a Hadamard
# transform with random signs, as QuIP# and QuaRot rotate weights
# ([arXiv:2402.04396](https://arxiv.org/abs/2402.04396), [arXiv:2404.00456](https://arxiv.org/abs/2404.00456)); and
# **aligned** with the source by its Karhunen-Loève transform (KLT; Goyal, *Theoretical foundations of transform
# coding*, 2001). The step of each coordinate follows its sensitivity, so that every coordinate adds the same error,
# and the bytes are those of the library's entropy coder.

# %%
size = {"draws": protocol.draws, "others": protocol.others, "accuracy": protocol.accuracy}
fits = [fit_basis(source, name, **size) for name in BASES]
cells = [measure(fitted, protocol) for fitted in fits]

print(f"{'basis':10} numbers  fit error  kurtosis   bytes at {LEVELS[0]:.0%} error: original, rotated, aligned")
for cell in cells:
    sizes = [cell.bytes_at(regime) for regime in ("original", "rotated", cell.aligned)]
    text = "  ".join("not reached" if size is None else f"{size:11.1f}" for size in sizes)
    tails = cell.regimes["original"].distribution.kurtosis
    print(f"{cell.representation:10} {cell.size:7d}  {cell.fit_error:9.1e}  {tails:8.1f}   {text}")

# %% [markdown]
# What could the best of all coders do? A source with Gaussian coefficients of variances $\sigma_i^2$ has the
# rate-distortion function (Cover & Thomas, theorem 10.3.3)
#
# $$ R(D) = \sum_i \max\left(0, \tfrac12 \log_2 \frac{\sigma_i^2}{\vartheta}\right), \qquad
#    D = \sum_i \min(\sigma_i^2, \vartheta). $$
#
# The variances are estimated from many draws. For a source that is not Gaussian this is what a Gaussian one with
# the same covariance would need, and a coder that knows more may stay below it.

# %%
many = source.draw(4096, stream=1)
variances = np.maximum(np.linalg.eigvalsh(many.T @ many / len(many)), 0)
distortion = LEVELS[0] * np.square(draws).mean()
bound = float(rate_at_distortion(jnp.asarray(variances, jnp.float32), jnp.float32(distortion))) * variances.size / 8
print(f"a Gaussian source with this covariance: {bound:.1f} bytes per function at {LEVELS[0]:.0%} error")

# %% [markdown]
# ## A network is a basis, too
#
# Two hidden layers of sines (SIREN, [arXiv:2006.09661](https://arxiv.org/abs/2006.09661)), trained with Adam on the
# same values. Its parameters have no orthonormal basis behind them; the sensitivity is the Gauss-Newton matrix $H =
# \tfrac1n J^\top J$, and *aligned* means its eigenbasis.

# %%
networks = fit_networks(
    source, "sine", draws=4, seeds=1, steps=protocol.steps, widths=protocol.widths, accuracy=protocol.accuracy
)
for fitted in networks:
    cell = measure(fitted, protocol)
    cells.append(cell)
    print(f"{cell.size} parameters, relative error of the fit {cell.fit_error:.1e}")
    print(f"effective dimension of the sensitivity: {cell.sensitivity.effective_dimension:.1%} of the parameters")
    for level in LEVELS:
        sizes = [cell.bytes_at(regime, level) for regime in ("original", "rotated", cell.aligned)]
        text = ", ".join("not reached" if size is None else f"{size:.0f}" for size in sizes)
        print(f"bytes per function at {level:.0%} error: original, rotated, aligned = {text}")

# %% [markdown]
# ## What stays when parameters are changed
#
# Between two linear layers any rotation cancels: $B A = (B R^\top)(R A)$. The function is the same to float error;
# the parameters are other numbers. If every pair of layers is turned in its own way, a coder that looks for what
# they have in common finds less of it.

# %%
pair, thetas = linear_pairs(protocol.draws)
turned = [
    compare("rotate", shared, pair, jnp.zeros((1, 1)), thetas, rotate_between(thetas, shared), protocol.targets)
    for shared in (True, False)
]
for change in turned:
    how = "all in the same way" if change.is_shared else "each in its own way"
    before, after = ("not reached" if size is None else f"{size:.0f}" for size in change.sensitive_bytes)
    print(f"{how}: the function moves by {change.function_change:.0e} of its RMS; bytes {before} before, {after} after")
    assert change.function_change < 1e-4

# %% [markdown]
# ## Original, rotated, aligned
#
# Everything in one figure; its title is computed from the results.

# %%
results = Results(protocol=protocol, cells=tuple(cells), invariances=tuple(turned), ar1_bound_bytes=None)
source_figure(results, SOURCE)

# %% [markdown]
# ## Predictions against outcomes
#
# Thirteen predictions were written down before they were tested. These are the ones that this small run says something
# about, each decided by code. A refuted one is a result like any other.

# %%
for outcome in outcomes(results):
    if outcome.holds is not None:
        print(outcome.name, "holds:  " if outcome.holds else "REFUTED:", outcome.prediction)
        print("   ", outcome.evidence)

# %% [markdown]
# ## Things to try
#
# - Set `SOURCE = "ar1"` near the top: a path whose rate-distortion function is known in closed form. How far above
#   it is the KLT? Compare with `occ_jax.metrics.UNIFORM_LOSS_BITS` for every coefficient that is sent.
# - Set `SOURCE = "convolution"`: a matrix that Fourier makes diagonal. What does a rotation do to it?
# - Let the network train longer (`steps=2000`). Does it get cheaper than the best basis?
# - Run the whole experiment: `occ toy --quick` (one function, a minute), or `occ toy` (ten).
