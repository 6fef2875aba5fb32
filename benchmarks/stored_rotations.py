"""Rotations that are stored with a matrix: the bits that they save of its weights, and the bits that they take.

    python benchmarks/stored_rotations.py [--model tiny] [--every 10] [--steps 150]

For every kind of linear layer and every ``--every``-th block a rotation along the columns is learned on the rate of the
log-scale field, from the identity, for one matrix alone. The gain is the fall of that rate with the rotation as a file
holds it, in bits per weight; the cost is the bytes of the rotation in the file. Beside both stands the gain of the same
learning on a Gaussian matrix of the same row and column scales, which has nothing to be found. Medians over blocks go
to standard error as a table, and to standard output as one JSON object.
"""

import json
import sys
import time
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from occ_llm.checkpoints import load_checkpoint
from occ_llm.compression.input_bases import BASIS_BITS
from occ_llm.compression.network import written_bits
from occ_llm.folding import fold_norms
from occ_llm.learning.structures import Structure, structured
from occ_llm.roles import LINEAR_KINDS, linear_name

from occ_jax.codec import stored_transform
from occ_jax.learned import RateDistortion, Step, fit, gaussian_control, materialize, scale_field_bits
from occ_jax.transforms import Transform

STRUCTURES = get_args(Structure)


def loss(transform: Transform, w: jax.Array, _: Step) -> RateDistortion:
    """The rate alone: in orthonormal coordinates at a fixed step the distortion does not move."""
    return RateDistortion(scale_field_bits(materialize(transform).forward(w)), jnp.float32(0))


def measure(stack: jax.Array, structure: Structure, steps: int) -> tuple[list[float], list[float]]:
    """Gain and cost of a rotation of each of some matrices of one shape, in bits per weight."""
    first = structured(structure, stack.shape[-1])
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(stack), *leaf.shape)), first)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    fitted = fit(start, loss, key=jax.random.key(0), steps=steps, data=stack, optimizer=optimizer, stacked=True)
    gains, costs = [], []
    for number, w in enumerate(stack):
        learned = materialize(jax.tree.map(lambda leaf, i=number: leaf[i], fitted.params))
        stored = stored_transform(learned, matrix_bits=BASIS_BITS)
        gains.append(float(scale_field_bits(w) - scale_field_bits(stored.forward(w))))
        costs.append(written_bits(learned) / w.size)
    return gains, costs


def main(model: str = "smollm2-135m-q4_1", every: int = 10, steps: int = 150, seed: int = 0) -> None:
    """Print gain, cost and control for every kind of linear layer.

    Args:
        model: a directory, a hub id, a .gguf file, or a name of `occ models`.
        every: which blocks: the first, and every so many-th.
        steps: of Adam, with a cosine schedule from 0.01.
        seed: of the Gaussian matrices.
    """
    checkpoint = load_checkpoint(model)
    weights = fold_norms(checkpoint.config, checkpoint.weights)
    blocks = range(0, checkpoint.config.num_layers, every)
    rows, began = [], time.perf_counter()
    for kind in LINEAR_KINDS:
        stack = jnp.asarray(np.stack([weights[linear_name(layer, kind)] for layer in blocks]), jnp.float32)
        noise = jnp.stack([gaussian_control(w, key=jax.random.key(seed + i)) for i, w in enumerate(stack)])
        for structure in STRUCTURES:
            gains, costs = measure(stack, structure, steps)
            controls, _ = measure(noise, structure, steps)
            gain, cost, control = (float(np.median(x)) for x in (gains, costs, controls))
            pays = int(np.sum(np.asarray(gains) > np.asarray(costs)))
            rows.append(
                {"kind": kind, "structure": structure, "gain_bits": gain, "cost_bits": cost, "control_bits": control}
                | {"pays": pays}
            )
            print(
                f"{kind:5} {structure:9} gain {gain:7.4f}  cost {cost:7.4f}  on noise {control:7.4f}  "
                f"pays in {pays} of {len(stack)}",
                file=sys.stderr,
                flush=True,
            )
    settings = {"model": model, "blocks": len(blocks), "steps": steps, "matrix_bits": BASIS_BITS, "seed": seed}
    seconds = time.perf_counter() - began
    print(json.dumps({"benchmark": "stored_rotations", **settings, "rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    tyro.cli(main)
