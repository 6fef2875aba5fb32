"""Encode and decode tensors with any codec."""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from occ_jax.codec import basis, integers, lattice, raw
from occ_jax.codec.axes import apply_axes, read_axes, undo_axes
from occ_jax.codec.batch import decode_lattices
from occ_jax.codec.errors import FormatError, damaged, too_new
from occ_jax.codec.levels import Levels
from occ_jax.codec.spec import DEFAULT_MATRIX_BITS, stored_transform
from occ_jax.codec.tensor import CodedTensor, matrix_shape, require_codebook, shorten
from occ_jax.entropy.stacks import stack
from occ_jax.entropy.tables import from_samples
from occ_jax.quantization import Affine, Quantizer
from occ_jax.quantization.codebook import REACH, Codebook
from occ_jax.transforms import Transform

_Check = Callable[[Mapping[str, Any], tuple[int, ...], Mapping[str, int], str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """Names of a codec's sections in file order, and the check that its claims fit its bytes."""

    sections: tuple[str, ...]
    check: _Check


CODECS: Mapping[str, Codec] = {
    **{name: Codec(sections=found, check=lattice.check_lattice) for name, found in lattice.LATTICES.items()},
    "affine": Codec(sections=integers.SECTIONS, check=integers.check_affine),
    "raw": Codec(sections=raw.SECTIONS, check=raw.check_raw),
    "transform": Codec(sections=basis.SECTIONS, check=basis.check_transform),
}
"""The codecs of format version 1."""


def check_tensor(spec: Mapping[str, Any], shape: tuple[int, ...], sizes: Sequence[int], place: str) -> None:
    """Hold the claims of a tensor against the lengths of its sections, before anything is allocated for it.

    Raises:
        FormatError: the codec is unknown, or spec, shape and sections contradict each other.
    """
    name = spec.get("codec")
    if not isinstance(name, str):
        raise damaged(place, f"its codec is {shorten(name)}")
    if name not in CODECS:
        raise too_new(place, f"codec {name!r:.40}")
    codec = CODECS[name]
    if len(sizes) != len(codec.sections):
        raise damaged(place, f"it has {len(sizes)} sections and codec {name!r} has {len(codec.sections)}")
    codec.check(spec, shape, dict(zip(codec.sections, sizes)), place)


def encode_tensor(
    w: Float[np.ndarray, "..."] | Float[Array, "..."],
    quantizer: Quantizer,
    *,
    codebook: Codebook | None = None,
    left: Transform | None = None,
    right: Transform | None = None,
    matrix_bits: int = DEFAULT_MATRIX_BITS,
    lane_symbols: int = 1 << 14,
) -> CodedTensor:
    """Transform, quantize and code one tensor.

    Args:
        w: the tensor; transforms see a matrix of its last axis and all others together.
        quantizer: of the coefficients: :class:`Affine` (packed), or any quantizer with a scalar ``step`` whose
            reconstruction points are its multiples, however it rounds (entropy-coded; a decoder need not know how an
            index was chosen). Trellis indices go through :func:`~occ_jax.codec.lattice.encode_lattice`.
        codebook: tables of an entropy-coded tensor, one state; made from its own indices when left out.
        left, right: stored transforms of the first and the last axis.
        matrix_bits: resolution of stored matrices.
        lane_symbols: symbols per lane of the entropy coder.

    Raises:
        ValueError: a value that is not finite, or a quantizer that a file cannot hold in this way.

    Example:
        >>> from occ_jax.quantization import Uniform
        >>> w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        >>> coded = encode_tensor(w, Uniform(jnp.array(0.01)))
        >>> bool(np.abs(decode_tensor(coded) - w).max() <= 0.00501)
        True
    """
    shape = matrix_shape(tuple(w.shape))
    matrix = jnp.asarray(w, jnp.float32).reshape(shape)
    if not bool(jnp.isfinite(matrix).all()):
        raise ValueError("the tensor holds NaN or infinite values: only finite weights can be coded")
    # Coordinates are the decoder's; what is written is the transform itself, as rounding twice would move it again.
    decoded = [None if t is None else stored_transform(t, matrix_bits=matrix_bits) for t in (left, right)]
    y = apply_axes(matrix, *decoded).reshape(w.shape)
    q = quantizer.quantize(y)
    if isinstance(quantizer, Affine):
        return integers.encode_affine(np.asarray(q), quantizer, left=left, right=right, matrix_bits=matrix_bits)
    levels = Levels.constant(_lattice_step(quantizer, q), shape)
    return lattice.encode_lattice(
        q,
        levels,
        scalar_codebook(np.asarray(q)) if codebook is None else codebook,
        left=left,
        right=right,
        matrix_bits=matrix_bits,
        lane_symbols=lane_symbols,
    )


def _lattice_step(quantizer: Quantizer, q: Int32[Array, "..."]) -> float:
    """The step of a quantizer whose reconstruction points are its multiples."""
    step = getattr(quantizer, "step", None)
    if step is None or jnp.ndim(step):
        raise ValueError(f"{type(quantizer).__name__} with this step cannot be coded: use encode_lattice with levels")
    if not bool((quantizer.dequantize(q) == step * q.astype(step.dtype)).all()):
        raise ValueError(
            f"{type(quantizer).__name__} reconstructs other points than multiples of its step: a file cannot hold it"
        )
    return float(step)


def scalar_codebook(q: Int32[np.ndarray, "..."], *, precision: int = 12) -> Codebook:
    """A codebook of one class and one state from the indices themselves."""
    tables = stack([from_samples(q, precision)])
    return Codebook(tables, jnp.zeros((1, 2 * REACH + 1), jnp.int8), num_states=1)


def decode_indices(coded: Sequence[CodedTensor]) -> list[Int32[np.ndarray, "..."]]:
    """Integers of lattice and affine tensors, the same on every machine and any number of devices.

    Raises:
        FormatError: a tensor is damaged, or holds raw values and has no integers.
    """
    return [q for q, _ in _indices(coded)]


def _indices(coded: Sequence[CodedTensor]) -> list[tuple[np.ndarray, Levels | None]]:
    for tensor in coded:
        check_tensor(tensor.spec, tensor.shape, [len(s) for s in tensor.sections.values()], tensor.place)
        if tensor.spec["codec"] not in (*lattice.LATTICES, "affine"):
            raise FormatError(f"{tensor.place} holds a {tensor.spec['codec']} tensor, which has no indices.")
    lattices = iter(decode_lattices([tensor for tensor in coded if tensor.spec["codec"] in lattice.LATTICES]))
    results = []
    for tensor in coded:
        if tensor.spec["codec"] in lattice.LATTICES:
            q, levels = next(lattices)
            results.append((q.reshape(tensor.shape), levels))
        else:
            results.append((integers.decode_affine_indices(tensor), None))
    return results


def decode_tensor(coded: CodedTensor) -> Float32[np.ndarray, "..."]:
    """The tensor in float32; see :func:`decode_tensors`."""
    return decode_tensors([coded])[0]


def decode_tensors(coded: Sequence[CodedTensor]) -> list[Float32[np.ndarray, "..."]]:
    """Rebuild tensors in float32, all lanes of their entropy coder together.

    Give as many at once as the result may take memory: few long lanes decode slowly, thousands of them fast.

    Raises:
        FormatError: a tensor is damaged or needs a newer version.
    """
    for tensor in coded:
        check_tensor(tensor.spec, tensor.shape, [len(s) for s in tensor.sections.values()], tensor.place)
    indices = deque(_indices([tensor for tensor in coded if tensor.spec["codec"] != "raw"]))
    # Every array of indices is let go as soon as its weights are there.
    work = [(tensor, None if tensor.spec["codec"] == "raw" else indices.popleft()) for tensor in coded]
    work.reverse()
    weights = []
    while work:
        tensor, found = work.pop()
        weights.append(raw.decode_raw(tensor) if found is None else _dequantize(tensor, *found))
    return weights


def _dequantize(coded: CodedTensor, q: Int32[np.ndarray, "..."], levels: Levels | None) -> Float32[np.ndarray, "..."]:
    shape = matrix_shape(coded.shape)
    left, right = read_axes(coded.spec, coded.sections["transforms"], shape, coded.place)
    if not q.size:
        return np.zeros(coded.shape, np.float32)
    if levels is None:
        y = integers.dequantize_affine(coded, q)
    else:
        y = lattice.dequantize_lattice(q.reshape(shape), levels, require_codebook(coded))
        if (offset := lattice.read_offset(coded)) is not None:
            y += offset
    if left is not None or right is not None:
        y = np.asarray(undo_axes(jnp.asarray(y), left, right))
    return y.reshape(coded.shape)
