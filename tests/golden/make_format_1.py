"""Write the golden file of format version 1 and what a reader must make of it, from closed formulas.

Run once for each file: ``python tests/golden/make_format_1.py NAME``. ``format_1`` is what version 1 began with, and
``format_1_offsets`` has the codec that came after it. Readers of every later version must go on reading both; never write
one anew. Numbers come from closed formulas, not from a random generator, whose streams may change.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from occ_jax.codec import (
    CodedTensor,
    Levels,
    decode_indices,
    decode_tensors,
    encode_lattice,
    encode_raw,
    encode_tensor,
    encode_transform,
    open_container,
    write_container,
)
from occ_jax.entropy import from_counts, stack
from occ_jax.quantization import Uniform, fit_affine
from occ_jax.quantization.codebook import Codebook
from occ_jax.quantization.ungerboeck import next_states
from occ_jax.transforms import DCT, Blockwise, Chain, Hadamard, Inverse, RealFFT, Rotation, hadamard, klt

HERE = Path(__file__).parent


def wave(*shape: int) -> np.ndarray:
    """Numbers that look irregular and are the same everywhere."""
    i = np.arange(np.prod(shape, dtype=int), dtype=np.float64)
    return (np.sin(1.7 * i + 0.3) + 0.6 * np.cos(0.37 * i * np.sqrt(i))).astype(np.float32).reshape(shape)


def codebook(num_states: int, num_classes: int) -> Codebook:
    """Triangular tables that widen with the class, and shifts that follow a formula."""
    parities = 1 if num_states == 1 else 2
    tables, shifts = [], np.zeros((num_classes * parities, 9), np.int8)
    for number in range(num_classes * parities):
        reach = 1 + number // parities
        counts = reach + 1 - np.abs(np.arange(-reach, reach + 1))
        tables.append(from_counts(counts, -reach, precision=10))
        for k in range(-min(reach, 4), min(reach, 4) + 1):
            shifts[number, k + 4] = (11 * number + 5 * k) % 31 - 15
    return Codebook(stack(tables), jnp.asarray(shifts), num_states)


def certain() -> Codebook:
    """A table that expects hardly anything but zero."""
    return Codebook(stack([from_counts(np.array([1, 9999, 1]), -1, precision=12)]), jnp.zeros((1, 9), jnp.int8), 1)


def path(rows: int, cols: int, num_states: int) -> np.ndarray:
    """Indices along a trellis, with a large one now and then."""
    following = next_states(num_states)
    q = np.zeros((rows, cols), np.int32)
    for i in range(rows):
        state = 0
        for j in range(cols):
            k = ((7 * i + 3 * j + i * j) % 7) - 3 + (100_000 if (i + 2 * j) % 53 == 52 else 0)
            q[i, j] = k if num_states == 1 else 2 * k + (state & 1)
            state = following[state, k & 1]
    return q


def levels(rows: int, cols: int) -> Levels:
    i, j = np.arange(rows, dtype=np.int32), np.arange(cols, dtype=np.int32)
    return Levels(
        base=0.0123,
        step_rows=5 * i % 11 - 4,
        step_cols=7 * j % 13 - 9,
        class_rows=3 * i % 5,
        class_cols=j % 3 - 1,
        resolution=8,
        class_shift=1,
    )


def rotation(n: int) -> Rotation:
    """A product of plane rotations."""
    matrix = np.eye(n)
    for i in range(n - 1):
        plane = np.eye(n)
        angle = 0.4 + 0.9 * i
        plane[i, i] = plane[i + 1, i + 1] = np.cos(angle)
        plane[i, i + 1], plane[i + 1, i] = -np.sin(angle), np.sin(angle)
        matrix = plane @ matrix
    return Rotation(jnp.asarray(matrix, jnp.float32))


def signs(n: int) -> Hadamard:
    return Hadamard(jnp.asarray(1 - 2 * (np.arange(n) ** 2 % 3 == 1), jnp.int8))


def tensors() -> dict[str, CodedTensor]:
    """Every codec, trellis size and transform, with awkward shapes."""
    shared = codebook(8, 3)
    coded = {
        "trellis.8": encode_lattice(path(9, 14, 8), levels(9, 14), shared, lane_symbols=30),
        "trellis.8.again": encode_lattice(path(2, 5, 8), levels(2, 5), shared),
        "scalar": encode_lattice(path(7, 11, 1), levels(7, 11), codebook(1, 4), lane_symbols=20),
        "empty": encode_lattice(np.zeros((0, 3), np.int32), levels(0, 3), shared),
        "one": encode_tensor(np.float32(0.75), Uniform(jnp.array(0.25))),
        "zeros": encode_lattice(np.zeros((1, 40_000), np.int32), Levels.constant(0.5, (1, 40_000)), certain()),
        "rank3": encode_tensor(wave(2, 3, 5), Uniform(jnp.array(0.125))),
        "affine.3": encode_tensor(wave(5, 19), fit_affine(jnp.asarray(wave(5, 19)), 3, group_size=8)),
        "affine.2": encode_tensor(
            wave(4, 9), fit_affine(jnp.asarray(wave(4, 9)), 2, group_size="tensor", symmetric=True)
        ),
        "float32": encode_raw(wave(6)),
        "float16": encode_raw(wave(2, 3), "float16"),
        "bfloat16": encode_raw(wave(7), "bfloat16"),
        "rotated": encode_tensor(
            wave(12, 20), Uniform(jnp.array(0.125)), left=signs(12), right=Chain((Blockwise(rotation(5), 5), DCT()))
        ),
        "frequency": encode_tensor(wave(6, 7), Uniform(jnp.array(0.0625)), left=Inverse(RealFFT()), right=RealFFT()),
        "basis": encode_transform(klt(jnp.asarray(np.diag([4.0, 3.0, 2.0, 1.0]) + 0.25, jnp.float32)), 4),
        "plain.hadamard": encode_transform(hadamard(6), 6),
    }
    for states in (4, 16, 32, 64, 128, 256):
        coded[f"trellis.{states}"] = encode_lattice(path(2, 40, states), levels(2, 40), codebook(states, 2))
    return coded


def offsets() -> dict[str, CodedTensor]:
    """Lattices with an offset in every column, along a trellis and not, turned, and without elements."""
    centred = {"offset": 0.5 * wave(14), "lane_symbols": 30}
    return {
        "trellis.8": encode_lattice(path(9, 14, 8), levels(9, 14), codebook(8, 3), **centred),
        "scalar": encode_lattice(path(7, 14, 1), levels(7, 14), codebook(1, 4), **centred),
        "turned": encode_lattice(path(9, 14, 8), levels(9, 14), codebook(8, 3), right=DCT(), **centred),
        "empty": encode_lattice(np.zeros((0, 14), np.int32), levels(0, 14), codebook(8, 3), **centred),
    }


FILES: dict[str, Callable[[], dict[str, CodedTensor]]] = {"format_1": tensors, "format_1_offsets": offsets}


def main(name: str) -> None:
    target = HERE / f"{name}.occ.safetensors"
    write_container(target, FILES[name](), model={"note": "golden file of format version 1"}, producer="occ_jax 0.1.0")
    expected = {}
    with open_container(target) as container:
        for key in container:
            coded = container[key]
            if coded.spec["codec"] != "transform":
                expected[f"w/{key}"] = decode_tensors([coded])[0]
            if coded.spec["codec"] in ("lattice", "offset_lattice", "affine"):
                expected[f"q/{key}"] = decode_indices([coded])[0]
    np.savez_compressed(HERE / f"{name}.npz", **expected)


if __name__ == "__main__":
    main(sys.argv[1])
