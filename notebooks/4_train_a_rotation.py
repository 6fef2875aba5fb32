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
# # 4. Train a learned rotation
#
# Rotations are free to choose, so why take a random one? Coordinates can be trained on what they are for:
#
# $$ \min_T\; R(T W) + \lambda D(T W), $$
#
# with $R$ a differentiable code length and $D$ an error (SpinQuant,
# [arXiv:2405.16406](https://arxiv.org/abs/2405.16406), learns rotations for integers; the theory is in [Learned
# axes](../docs/theory/learned_axes.md)). And there is a trap: a rotation has $n(n-1)/2$ parameters and finds
# structure in pure noise. So every training below runs twice, once on the weights and once on a **control**:
# Gaussian noise with the same row and column scales.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array
from occ_llm.analysis.regimes import STEP_RMS, rate_at_equal_distortion
from occ_llm.checkpoints import load_checkpoint
from occ_llm.figures import COLOURS, STYLE
from occ_llm.folding import fold_norms
from occ_llm.roles import linear_name

from occ_jax.codec import encode_transform, stored_transform
from occ_jax.learned import (
    RateDistortion,
    Step,
    affine_reconstruction,
    cayley,
    fit,
    gaussian_control,
    materialize,
    scale_field_bits,
)
from occ_jax.metrics import mse, sqnr_db
from occ_jax.quantization import fit_affine
from occ_jax.transforms import Transform, identity, random_hadamard

plt.rcParams.update(STYLE)

MODEL = "tiny"  # the line to change: "smollm2-135m-q4_1" has axes of 576 channels and takes minutes
STEPS = 150

checkpoint = load_checkpoint(MODEL)
config = checkpoint.config
weights = fold_norms(config, checkpoint.weights)
n = config.hidden_size

# %% [markdown]
# ## The rotation
#
# A gradient step on the entries of an orthogonal matrix would make it something else. The Cayley transform has free
# parameters and is orthogonal for all of their values:
#
# $$ Q = (I + A)^{-1} (I - A)\, Q_0, \qquad A = \tfrac12 (G - G^\top) . $$
#
# ## The rate
#
# With one scale per row and per column, as the codec has them, a Gaussian code at high rate takes
#
# $$ R = \overline{\log_2 \alpha_i \beta_j} + \tfrac12 \log_2 2 \pi e \quad \text{bits per weight,} $$
#
# up to the step, which is the same for all orthonormal coordinates. So is the error: there is no distortion to
# train. What a rotation can gain is more unequal scales.


# %%
def rate(transform: Transform, w: Array, step: Step) -> RateDistortion:
    """The code length alone."""
    return RateDistortion(scale_field_bits(transform.forward(w)), jnp.float32(0))


def train(loss, start: Transform, weights_and_control):
    """Train a rotation on the weights and one on their control, each as if alone."""
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, STEPS))
    data = weights_and_control
    return fit(twice, loss, key=jax.random.key(0), steps=STEPS, data=data, optimizer=optimizer, stacked=True)


# %% [markdown]
# ## One matrix, and the trap

# %%
name = linear_name(layer=2, kind="q")
w = jnp.asarray(weights[name])
control = gaussian_control(w, key=jax.random.key(1))
fitted = train(rate, cayley(n), jnp.stack([w, control]))

falls = fitted.log.bits[0][None, :] - fitted.log.bits
gain, noise = falls[-1]
figure, axes = plt.subplots(figsize=(7, 4))
for index, label in enumerate(("weights", "control: Gaussian noise")):
    axes.plot(falls[:, index], color=COLOURS[index], linestyle="-" if index == 0 else "--", label=label)
axes.set_xlabel("step of Adam")
axes.set_ylabel("fall of the rate (bits per weight)")
axes.set_title(f"{gain:.3f} bit learned on the weights, {noise:.3f} bit on noise")
axes.legend()
plt.show()
print(f"departure from orthogonality: {fitted.log.orthogonality.max():.1e}")

# %% [markdown]
# What exceeds the control was in the weights. Now the real coder, at equal distortion, and the price: if nothing
# else can absorb the rotation, a file has to hold it.

# %%
learned = jax.tree.map(lambda leaf: leaf[0], fitted.params)
stored = stored_transform(materialize(learned))  # rounded, as a decoder will have it
systems = {"original": identity(), "Hadamard": random_hadamard(n, key=jax.random.key(0)), "learned": stored}
for label, transform in systems.items():
    y = np.asarray(transform.forward(w))
    step = STEP_RMS * float(np.sqrt(np.square(y).mean()))
    bits = rate_at_equal_distortion(y, np.rint(y / step).astype(np.int32), step)
    basis = 8 * encode_transform(transform, n).num_bytes / w.size
    print(f"{label:9} {bits:.3f} bits per weight in coded bytes, and {basis:.3f} for the basis")

# %% [markdown]
# ## One rotation for the whole residual stream
#
# Everything that reads the residual stream may share one rotation, and everything that writes it undoes it: the
# rotated network is a network again, and the rotation costs nothing in the file, up to the basis beside a tied head
# (QuaRot, [arXiv:2404.00456](https://arxiv.org/abs/2404.00456)). Many more weights per parameter also leave less
# room to fit noise.

# %%
readers = ("q", "k", "v", "gate", "up")
layers = range(config.num_layers)
stacks = {kind: jnp.stack([jnp.asarray(weights[linear_name(layer, kind)]) for layer in layers]) for kind in readers}


def noise_like(stack: Array, seed: int) -> Array:
    """The control of every layer's matrix."""
    keys = jax.random.split(jax.random.key(seed), len(stack))
    return jnp.stack([gaussian_control(m, key=key) for m, key in zip(stack, keys, strict=True)])


def shared_rate(transform: Transform, matrices: dict[str, Array], step: Step) -> RateDistortion:
    """Mean code length of all matrices of all layers in one rotation."""
    turned = materialize(transform)
    total = sum(stack.size for stack in matrices.values())
    bits = [
        stack.size / total * jax.vmap(lambda m: scale_field_bits(turned.forward(m)))(stack).mean()
        for stack in matrices.values()
    ]
    return RateDistortion(jnp.stack(bits).sum(), jnp.float32(0))


both = {kind: jnp.stack([stack, noise_like(stack, seed)]) for seed, (kind, stack) in enumerate(stacks.items())}
shared = train(shared_rate, cayley(n), both)
gain, noise = shared.log.bits[0] - shared.log.bits[-1]
count = sum(stack.size for stack in stacks.values())
print(f"one rotation for {count:,} weights, {n * (n - 1) // 2:,} free angles")
print(f"gain {gain:.4f} bit per weight, {noise:.4f} on noise: {gain - noise:+.4f} beyond noise")

# %% [markdown]
# ## The same for integers
#
# Integers with one scale for every group have no rate to train: their bits are fixed, and the error is all there
# is,
#
# $$ D = \lVert y - \hat y \rVert^2 / \lVert y \rVert^2, $$
#
# with straight-through gradients that know that the scale is the range of the group (Esser et al., *Learned step
# size quantization*, [arXiv:1902.08153](https://arxiv.org/abs/1902.08153)). The start is a Hadamard transform.

# %%
BITS, GROUP = 4, 32


def integer_error(transform: Transform, w: Array, step: Step) -> RateDistortion:
    """Relative error of integers in groups."""
    y = transform.forward(w)
    error = mse(affine_reconstruction(y, BITS, group_size=GROUP), y) / jnp.square(w).mean()
    return RateDistortion(jnp.float32(0), error)


hadamard = random_hadamard(n, key=jax.random.key(0))
for_integers = train(integer_error, cayley(n, start=hadamard), jnp.stack([w, control]))
learned = materialize(jax.tree.map(lambda leaf: leaf[0], for_integers.params))

for label, transform in {
    "original": identity(),
    "Hadamard": hadamard,
    "learned": learned,
    "for the coder": stored,
}.items():
    y = transform.forward(w)
    quantizer = fit_affine(y, BITS, group_size=GROUP)
    ratio = float(sqnr_db(y, quantizer.dequantize(quantizer.quantize(y))))
    print(f"{label:13} signal to error {ratio:.2f} dB with INT{BITS} in groups of {GROUP}")
fall = 10 * np.log10(for_integers.log.distortion[0] / for_integers.log.distortion[-1])
print(f"learned from the Hadamard on: {fall[0]:+.2f} dB on the weights, {fall[1]:+.2f} dB on noise")

# %% [markdown]
# Two quantizers, two aims. Is what was learned for the coder any good for integers? Compare the last line of the
# table with the others.
#
# ## Things to try
#
# - Another kind of matrix in `linear_name(layer=2, kind="q")`: where is there something to learn beyond noise?
# - Fewer parameters: `occ_jax.transforms.butterfly` in the place of `cayley`. What is left of the gain, and of the
#   noise?
# - A density with heavier tails: `code_length(y / step, key=step.key, family="laplace", scales="field")` as the
#   rate.
# - The whole network, fused and stored: `occ learn tiny transforms.safetensors --control`, then `occ compress tiny
#   out --bits 3 --coordinates learned --transforms transforms.safetensors` ([guide](../docs/guides/learn.md)).
