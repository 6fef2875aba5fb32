"""Time the fast Hadamard transform against the product with its matrix and against a plain copy of the array.

    python benchmarks/transforms.py [--values 67108864] [--repeats 5]

All three are compiled programs that write a new array. Each is run ``repeats`` times, the three in turn so that
whatever else the machine does falls on all of them, and the shortest time counts; the product, which takes seconds,
is run twice. The table goes to standard error, one JSON object to standard output.
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


def seconds(f: Callable[..., jax.Array], *args: jax.Array) -> float:
    """Wall time of one run, the result ready."""
    start = time.perf_counter()
    f(*args).block_until_ready()
    return time.perf_counter() - start


def measure(n: int, values: int, repeats: int) -> dict[str, float]:
    """Times for vectors of length ``n``, and the largest difference between transform and product."""
    t = random_hadamard(n, key=jax.random.key(n))
    x = jax.random.normal(jax.random.key(0), (values // n, n))
    matrix = jax.jit(t.forward)(jnp.eye(n))
    copy = jax.jit(jnp.copy).lower(x).compile()
    product = jax.jit(lambda x, matrix: x @ matrix).lower(x, matrix).compile()
    transform = jax.jit(lambda t, x: t.forward(x)).lower(t, x).compile()
    difference = float(jnp.abs(transform(t, x) - product(x, matrix)).max())
    copy(x).block_until_ready()
    times: dict[str, list[float]] = {"copy_s": [], "transform_s": [], "product_s": []}
    for i in range(repeats):
        times["copy_s"].append(seconds(copy, x))
        times["transform_s"].append(seconds(lambda x: transform(t, x), x))
        if i < 2:
            times["product_s"].append(seconds(product, x, matrix))
    best = {name: min(runs) for name, runs in times.items()}
    return best | {
        "copies": best["transform_s"] / best["copy_s"],
        "speedup": best["product_s"] / best["transform_s"],
        "max_difference": difference,
    }


def main(values: int = 2**26, repeats: int = 5) -> None:
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
