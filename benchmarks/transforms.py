"""Time the fast Hadamard transform against the product with its matrix and against a plain copy of the array.

    python benchmarks/transforms.py [--values 67108864] [--repeats 8]

All three are compiled beforehand and write a new array. Copy and transform are run ``repeats`` times in turn, so that
whatever else the machine does falls on both, and the shortest time counts; the product, which takes seconds, is run
once. The table goes to standard error, one JSON object to standard output.
"""

import json
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro

from occ_jax.transforms import random_hadamard

SIZES = (576, 1536, 4096, 4864, 16384)


def timed(f: Callable[..., jax.Array], *args: object) -> tuple[jax.Array, float]:
    """Result of one run, and the wall time until it was ready, in seconds."""
    start = time.perf_counter()
    result = f(*args).block_until_ready()
    return result, time.perf_counter() - start


def measure(n: int, values: int, repeats: int) -> dict[str, float]:
    """Times for vectors of length ``n``, and the largest difference between transform and product."""
    t = random_hadamard(n, key=jax.random.key(n))
    x = jax.random.normal(jax.random.key(0), (values // n, n))
    matrix = jax.jit(t.forward)(jnp.eye(n))
    copy = jax.jit(jnp.copy).lower(x).compile()
    product = jax.jit(lambda x, matrix: x @ matrix).lower(x, matrix).compile()
    transform = jax.jit(lambda t, x: t.forward(x)).lower(t, x).compile()
    expected, product_s = timed(product, x, matrix)
    difference = float(jnp.abs(transform(t, x) - expected).max())
    del expected
    runs = [(timed(copy, x)[1], timed(transform, t, x)[1]) for _ in range(repeats)]
    copy_s, transform_s = (min(times) for times in zip(*runs))
    return {
        "copy_s": copy_s,
        "transform_s": transform_s,
        "product_s": product_s,
        "copies": transform_s / copy_s,
        "speedup": product_s / transform_s,
        "max_difference": difference,
    }


def main(values: int = 2**26, repeats: int = 8) -> None:
    """Print the table and the JSON line.

    Args:
        values: entries of the array, float32.
        repeats: runs of the copy and of the transform.
    """
    print(f"{values:,} float32 values on {jax.devices()[0].device_kind} ({jax.default_backend()})", file=sys.stderr)
    print("  size     copy  transform    product   in copies  speedup", file=sys.stderr)
    results = {}
    for n in SIZES:
        r = results[str(n)] = measure(n, values, repeats)
        print(
            f"{n:6d} {r['copy_s']:7.3f}s {r['transform_s']:9.3f}s {r['product_s']:9.3f}s "
            f"{r['copies']:11.2f} {r['speedup']:7.1f}x",
            file=sys.stderr,
        )
    print(json.dumps({"benchmark": "transforms", "backend": jax.default_backend(), "values": values, "sizes": results}))


if __name__ == "__main__":
    tyro.cli(main)
