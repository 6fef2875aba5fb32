"""Learn one rotation of a matrix, and one of a Gaussian matrix of the same shape and scales: what exceeds noise?

    python benchmarks/learned_control.py [--rows 1536] [--columns 256] [--structure 0.2] [--steps 300]

The matrix has one scale for each row and each column, and its right axes are then turned by a small rotation
(``--structure``, in radians per pair of axes at most), which is what there is to find. The control has independent
Gaussian entries with the row and column scales that were fitted to the matrix. Gains are falls of the rate in bits per
weight from the original axes, of the log-scale field. A table goes to standard error, one JSON object to standard
output.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from occ_jax.learned import RateDistortion, Step, cayley, fit, gaussian_control, scale_field_bits
from occ_jax.transforms import Transform


def loss(transform: Transform, w: jax.Array, _: Step) -> RateDistortion:
    """The rate alone: in orthonormal coordinates at a fixed step the distortion does not move."""
    return RateDistortion(scale_field_bits(transform.forward(w)), jnp.float32(0))


def turned_matrix(rows: int, columns: int, structure: float, rng: np.random.Generator) -> jax.Array:
    """A Gaussian matrix of unequal rows and columns, its column axes turned a little."""
    field = np.exp2(0.5 * rng.standard_normal((rows, 1)) + 0.5 * rng.standard_normal((1, columns)))
    skew = np.triu(rng.uniform(-structure, structure, (columns, columns)) / np.sqrt(columns), 1)
    turn = np.linalg.solve(np.eye(columns) + skew - skew.T, np.eye(columns) - skew + skew.T)
    return jnp.asarray(field * rng.standard_normal((rows, columns)) @ turn, jnp.float32)


def main(rows: int = 1536, columns: int = 256, structure: float = 0.2, steps: int = 300, seed: int = 0) -> None:
    """Print both gains.

    Args:
        rows: of the matrices.
        columns: of the matrices, the length of the axes that are learned.
        structure: largest angle between the axes of the matrix and the original ones, times the root of ``columns``.
        steps: of Adam, with a cosine schedule from 0.01.
        seed: of both matrices.
    """
    rng = np.random.default_rng(seed)
    w = turned_matrix(rows, columns, structure, rng)
    stack = jnp.stack([w, gaussian_control(w, key=jax.random.key(seed))])
    start = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), cayley(columns))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    began = time.perf_counter()
    fitted = fit(start, loss, key=jax.random.key(seed), steps=steps, data=stack, optimizer=optimizer, stacked=True)
    seconds = time.perf_counter() - began
    gain, control = (fitted.log.bits[0] - fitted.log.bits[-1]).tolist()
    print(f"learned on the matrix    {gain:7.4f} bit per weight", file=sys.stderr)
    print(f"learned on the control   {control:7.4f} bit per weight", file=sys.stderr)
    print(f"left beyond noise        {gain - control:7.4f} bit per weight, {seconds:.0f} s", file=sys.stderr)
    settings = {"rows": rows, "columns": columns, "structure": structure, "steps": steps, "seed": seed}
    results = {"gain_bits": gain, "control_bits": control, "parameters_per_weight": columns / (2 * rows)}
    print(json.dumps({"benchmark": "learned_control", **settings, **results, "seconds": seconds}))


if __name__ == "__main__":
    tyro.cli(main)
