r"""Orthogonal matrices as side information: rounded, entropy-coded, and made orthogonal again by the reader.

Entries are rounded to multiples of :math:`2^{-e}` and coded with a frequency table of their own. The rounded matrix
:math:`M` is off by an error :math:`E`; its symmetric part would make the inverse inexact, its antisymmetric part is
only another rotation, which encoder and decoder share. Three Newton-Schulz steps

.. math::

    M \leftarrow \tfrac32 M - \tfrac12 M M^\top M

remove the symmetric part (each squares it), so a few bits per entry are enough for an exactly orthonormal transform.

References:
    Björck & Bowie, An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix, SIAM J. Numerical
    Analysis, 1971.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from occ_jax.codec.host import decode_on_host, encode_on_host, is_small
from occ_jax.codec.lanes import Lanes
from occ_jax.entropy.rans import decode, encode
from occ_jax.entropy.streams import Streams, pack, unpack
from occ_jax.entropy.tables import FreqTable, from_bytes, from_samples, to_bytes
from occ_jax.entropy.varint import ByteReader, write_varint

MAX_MATRIX_SIZE = 1 << 14
"""Largest matrix that is stored as such."""

MAX_EXPONENT = 24
"""Finest grid of the entries."""

_LANE_SYMBOLS = 1 << 14
_POLISHING_STEPS = 3
_MAX_ENTRIES_PER_BYTE = 1024


def write_orthogonal(matrix: Float[np.ndarray, "n n"], matrix_bits: int) -> tuple[dict[str, Any], bytes]:
    """Code a matrix with a grid ``2**matrix_bits`` times as fine as its typical entry ``n**-0.5``.

    Raises:
        ValueError: the matrix is not orthogonal, too large, or ``matrix_bits`` is not 2 to 16.
    """
    n = len(matrix)
    if not 2 <= matrix_bits <= 16:
        raise ValueError(f"matrix_bits is {matrix_bits}: take 2 to 16")
    if not 1 <= n <= MAX_MATRIX_SIZE:
        raise ValueError(f"a {n} x {n} matrix cannot be stored: take a structured transform, or blocks")
    matrix = np.asarray(matrix, np.float64)
    departure = np.abs(matrix @ matrix.T - np.eye(n)).max()
    if not departure < 1e-3:
        raise ValueError(f"the matrix is not orthogonal: M M^T differs from the identity by {departure:.2g}")
    exponent = min(MAX_EXPONENT, matrix_bits + round(np.log2(n) / 2))
    q = np.rint(np.ldexp(matrix, exponent)).astype(np.int32)
    lanes = _lanes(n)
    table = from_samples(q, precision=14, max_symbols=1 << 12)
    symbols, lengths = lanes.split(q, 0, lanes.count), lanes.lengths()
    if is_small(lanes.count, lanes.steps, table):
        streams = pack(encode_on_host(symbols, table, np.zeros_like(symbols), lengths))
    else:
        streams = pack(encode(jnp.asarray(symbols), table, lengths=jnp.asarray(lengths)))
    parts = (to_bytes(table), streams)
    data = b"".join(write_varint(len(part)) + part for part in parts)
    missing = -(-n * n // _MAX_ENTRIES_PER_BYTE) - len(data)
    return {"size": n, "exponent": exponent}, data + write_varint(max(missing, 0)) + bytes(max(missing, 0))


def read_orthogonal(spec: Mapping[str, Any], data: ByteReader) -> Float32[np.ndarray, "n n"]:
    """Decode what :func:`write_orthogonal` wrote and make it orthogonal.

    Raises:
        ValueError: the spec or the bytes are not those of an orthogonal matrix.
    """
    n, exponent = spec.get("size"), spec.get("exponent")
    if type(n) is not int or not 1 <= n <= MAX_MATRIX_SIZE or n * n > _MAX_ENTRIES_PER_BYTE * data.remaining:
        raise data.fail(f"a matrix of size {n!r:.40} in {data.remaining} bytes")
    if type(exponent) is not int or not 0 <= exponent <= MAX_EXPONENT:
        raise data.fail(f"a matrix with exponent {exponent!r:.40}, expected an integer of 0 to {MAX_EXPONENT}")
    lanes = _lanes(n)
    table, streams, fill = (data.take(data.varint()).tobytes() for _ in range(3))
    if any(fill):
        raise data.fail("fill bytes are not zero")
    q = _decode_symbols(unpack(streams, lanes.lengths()), from_bytes(table), lanes, data).reshape(-1, n)[:n]
    return _orthogonalized(np.ldexp(q.astype(np.float64), -exponent), data).astype(np.float32)


def _decode_symbols(
    streams: Streams, table: FreqTable, lanes: Lanes, data: ByteReader
) -> Int32[np.ndarray, "lanes steps"]:
    if table.freq.shape[0] != 1:
        raise data.fail("a matrix has more than one table")
    if not is_small(lanes.count, lanes.steps, table):
        return np.asarray(decode(streams, table, num_steps=lanes.steps))
    zero = np.zeros(lanes.count, np.int64)
    q, intact = decode_on_host(streams, table, lambda _: zero, lambda _, value: value, num_steps=lanes.steps)
    if not intact.all():
        raise data.fail("the lanes of a matrix do not end in the state in which they were begun")
    return q


def _lanes(n: int) -> Lanes:
    return Lanes(rows=n, cols=n, rows_per_lane=min(n, max(1, _LANE_SYMBOLS // n)))


def _orthogonalized(matrix: Float64[np.ndarray, "n n"], data: ByteReader) -> Float64[np.ndarray, "n n"]:
    if not 2 / 3 < np.sum(matrix * matrix) / len(matrix) < 1.5:  # polishing would make -I of 2 I
        raise data.fail("a matrix is not nearly orthogonal")
    for _ in range(_POLISHING_STEPS):
        matrix = 1.5 * matrix - 0.5 * (matrix @ matrix.T) @ matrix
        if not np.abs(matrix).max() < 2:
            raise data.fail("a matrix is not nearly orthogonal")
    if np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() > 1e-4:
        raise data.fail("a matrix is not nearly orthogonal")
    return matrix
