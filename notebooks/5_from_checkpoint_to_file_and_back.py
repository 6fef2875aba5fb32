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
# # 5. From a checkpoint to a compressed file and back
#
# The whole way, with the functions behind the commands `occ compress`, `inspect`, `evaluate`, `generate` and
# `decompress`. A model goes in; out comes a directory in the Hugging Face layout whose weights are one
# entropy-coded file in which every byte is counted.

# %%
import dataclasses
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from occ_llm.calibration import calibrate, calibration_windows
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.compression import Settings, compress, measure_sizes, survey
from occ_llm.evaluation import Reference, cut_windows, evaluate
from occ_llm.figures import COLOURS, MARKERS, STYLE
from occ_llm.generation import generate
from occ_llm.model import LanguageModel
from occ_llm.roles import linear_name
from occ_llm.text import python_text

from occ_jax.codec import FormatError, decode_indices, decode_tensor, open_container

plt.rcParams.update(STYLE)

MODEL = "tiny"  # the line to change: "smollm2-135m-q4_1" takes some minutes
folder = tempfile.TemporaryDirectory()  # removed at the end; give a path of your own to keep the files
out = Path(folder.name)

# %% [markdown]
# ## Calibrate
#
# How much does an error in a weight cost? To second order an error $E$ in a matrix raises the divergence of the
# network by
#
# $$ \tfrac12 \sum_i g_i\, e_i H e_i^\top, \qquad H = \mathbb{E}[x x^\top], \qquad
#    g_i = \mathbb{E}\bigl[(\partial L / \partial y_i)^2\bigr], $$
#
# with $H$ from the inputs of the layer and $g$ the Fisher information of its outputs (Martens & Grosse,
# [arXiv:1503.05671](https://arxiv.org/abs/1503.05671)). Both are measured on text; without a file of your own it is
# the documentation that every Python carries.

# %%
checkpoint = load_checkpoint(MODEL)
window = 512
tokens = calibration_windows(checkpoint.tokenizer, window=window, max_windows=8)
statistics = calibrate(checkpoint.config, checkpoint.weights, tokens, key=jax.random.key(0))
print(
    f"{checkpoint.name}: {sum(w.size for w in checkpoint.weights.values()):,} weights, {tokens.size:,} tokens of text"
)

# %% [markdown]
# ## Compress
#
# Steps follow the sensitivity, so that one constant sets the rate of every weight in the file; errors are fed back
# to the weights that come later (GPTQ, [arXiv:2210.17323](https://arxiv.org/abs/2210.17323)). The target is met by
# searching for the constant. One state is scalar quantization, which compiles soonest; the default is a trellis of 32
# (Marcellin & Fischer, *Trellis coded quantization*, 1990), in whose search every survivor feeds back its own errors.

# %%
RATES = (4.0, 3.0)
first = Settings(bits=RATES[0], states=1)
made, near = {}, None
with survey(checkpoint, statistics, first) as surveyed:
    for bits in RATES:
        settings = dataclasses.replace(first, bits=bits)
        made[bits] = compress(checkpoint, out / f"{bits:g}", statistics, settings, surveyed=surveyed, near=near)
        near = made[bits].allocation  # the next search begins there

for bits, compressed in made.items():
    sizes = compressed.sizes
    print(
        f"asked for {bits}: {sizes.linear_bits_per_weight:.3f} bits per weight of the linear layers, "
        f"{sizes.file_bits_per_weight:.3f} of the whole file, {sizes.file_bytes:,} bytes"
    )

# %% [markdown]
# ## Inspect
#
# The ledger assigns every byte, and its lines add up to the size of the file.

# %%
directory = out / f"{RATES[-1]:g}"
file = directory / CONTAINER
sizes = measure_sizes(file)
assert sum(sizes.ledger.values()) == file.stat().st_size

largest = max(sizes.ledger, key=sizes.ledger.get)
figure, axes = plt.subplots(figsize=(8, 0.8 + 0.35 * len(sizes.ledger)))
axes.barh(list(sizes.ledger), [size / 1000 for size in sizes.ledger.values()], color=COLOURS[0])
axes.invert_yaxis()
axes.set_xlabel("kilobytes")
axes.set_title(f"{sizes.ledger[largest] / sizes.file_bytes:.0%} of the file are {largest}")
plt.show()

# %% [markdown]
# What is coded are integers: one for each weight, with a probability that follows from the scale class of its row
# and column. The decoder computes them with integer arithmetic alone, so that they are the same on every machine
# ([the file format](../docs/format.md)).

# %%
name = linear_name(layer=1, kind="up")
with open_container(file) as container:
    coded = container[name]
    q = decode_indices([coded])[0]
    w_hat = decode_tensor(coded)
print(f"{name}: {q.shape[0]} x {q.shape[1]} integers from {q.min()} to {q.max()}, {(q == 0).mean():.0%} of them zero")
print("bytes by section:", {section: len(data) for section, data in coded.sections.items()})
print("the first weights:", w_hat[0, :5].round(4))

# %% [markdown]
# A file is untrusted input. One byte is changed here; every tensor has a checksum.

# %%
damaged = out / "damaged.safetensors"
content = bytearray(file.read_bytes())
content[-100] ^= 1
damaged.write_bytes(content)
try:
    with open_container(damaged) as container:
        for tensor in container:
            container[tensor]
except FormatError as error:
    print("refused:", str(error).replace(str(out), "..."))
else:
    raise AssertionError("the damage was not noticed")

# %% [markdown]
# ## Evaluate
#
# The compressed directory opens like any other checkpoint. Quality is first of all the divergence from the
# original, with its standard error, on windows that calibration has not seen.

# %%
windows = cut_windows(python_text("heldout"), checkpoint.tokenizer, window=window, max_windows=8)
reference = Reference(LanguageModel.from_weights(checkpoint.config, checkpoint.weights))
original = evaluate(reference.model, windows, reference=reference)
print(f"original:  perplexity {original.perplexity:.3f}")

models, quality = {}, {}
for bits in RATES:
    opened = load_checkpoint(str(out / f"{bits:g}"))
    models[bits] = LanguageModel.from_weights(opened.config, opened.weights)
    quality[bits] = evaluate(models[bits], windows, reference=reference)
    print(
        f"{bits:g} bits:    perplexity {quality[bits].perplexity:.3f}, "
        f"KL {quality[bits].kl_mean:.4f} ± {quality[bits].kl_se:.4f} nats per token, "
        f"first choice the same for {quality[bits].top1_agreement:.1%}"
    )

# %%
figure, axes = plt.subplots(figsize=(6.5, 4))
axes.errorbar(
    [made[bits].sizes.file_bytes / 1000 for bits in RATES],
    [quality[bits].kl_mean for bits in RATES],
    yerr=[2 * quality[bits].kl_se for bits in RATES],
    marker=MARKERS[0],
    capsize=3,
)
ratio = quality[RATES[-1]].kl_mean / quality[RATES[0]].kl_mean
axes.set_yscale("log")
axes.set_xlabel("size of the file (kilobytes, everything included)")
axes.set_ylabel("KL divergence (nats per token)")
axes.set_title(
    f"{RATES[0] - RATES[-1]:g} bit less multiplies the divergence by {ratio:.1f} (bars: two standard errors)"
)
plt.show()

# %% [markdown]
# ## Read what it says

# %%
prompt = "Return the number of"
ids = checkpoint.tokenizer.encode(prompt).ids
for label, model in {"original": reference.model, **{f"{bits:g} bits": m for bits, m in models.items()}}.items():
    continued = list(generate(model, ids, max_new_tokens=24))
    print(f"{label:9} {prompt}{checkpoint.tokenizer.decode(continued)!r}")

# %% [markdown]
# ## And back
#
# An ordinary Hugging Face directory again, which transformers opens. Its weights are those that the decoder made.

# %%
opened = load_checkpoint(str(directory))
write_hf_directory(out / "dense", config=opened.config, weights=opened.weights, tokenizer_files=opened.tokenizer_files)
dense = load_checkpoint(str(out / "dense"))
assert all(np.array_equal(dense.weights[tensor], opened.weights[tensor]) for tensor in opened.weights)
for path in sorted((out / "dense").iterdir()):
    print(f"{path.name:24} {path.stat().st_size:9,} bytes")

# %% [markdown]
# ## Things to try
#
# - Other coordinates: `Settings(bits=3.0, coordinates="hadamard")`, or `"klt"`. Which file is better at equal
#   bytes?
# - `Settings(bits=3.0)` is a trellis of 32 states; 8 are faster, 128 are better. What is a state worth?
# - `Settings(bits=3.0, feedback=False)`: what does the feedback of errors save?
# - A target in bytes, `Settings(bytes=400_000)`, or in quality, `Settings(kl=0.05)` (which needs
#   `CalibrationTokens`).
# - The same from the command line: `occ compress tiny out --bits 3`, `occ inspect out`.
