"""A reader of the file format in plain Python and NumPy, written from docs/format.md; it imports nothing of occ_jax.

It reads the whole file at once and trusts its sizes, so it is no substitute for the library's own reader; it shows that
the specification is complete, and tells whether the library still follows it.
"""

import json
import math
import zlib

import numpy as np

SECTIONS = {
    "raw": ("values",),
    "affine": ("scales", "zero_points", "transforms", "indices"),
    "lattice": ("levels", "transforms", "lanes", "indices", "padding"),
    "offset_lattice": ("offset", "levels", "transforms", "lanes", "indices", "padding"),
    "transform": ("transforms",),
}
PARITY_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}


class Bytes:
    """Read from the front."""

    def __init__(self, data):
        self.data, self.at = bytes(data), 0

    def take(self, count):
        assert 0 <= count <= len(self.data) - self.at
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self):
        value, shift = 0, 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def zigzag(self):
        return unzigzag(self.varint())

    def end(self):
        assert self.at == len(self.data)


def unzigzag(value):
    return (value >> 1) ^ -(value & 1)


def bits_of(data):
    return [byte >> i & 1 for byte in data for i in range(8)]


def packed(data, width, count):
    number = int.from_bytes(data, "little")
    assert len(data) == (count * width + 7) // 8
    assert number >> (count * width) == 0
    return [number >> (i * width) & ((1 << width) - 1) for i in range(count)]


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def read_file(path):
    """Sections 2 and 3: header, and ``name -> (spec, shape, sections, codebook or None)``."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + size])
    text = outer.pop("__metadata__")["occ"]
    assert text[:10] == '{"crc32":"'
    assert text[18:20] == '",'
    assert zlib.crc32(text[20:].encode()) == int(text[10:18], 16)
    header = json.loads(text)
    assert header["version"] == 1
    assert header.get("requires", []) == []
    blobs = {}
    for name, entry in outer.items():
        first, last = entry["data_offsets"]
        assert entry["dtype"] == "U8"
        assert entry["shape"] == [last - first]
        blobs[name] = data[8 + size + first : 8 + size + last]
    codebooks = []
    for i, crc32 in enumerate(header["codebooks"]):
        blob = blobs.pop(f"occ.codebook.{i}")
        assert zlib.crc32(blob) == crc32
        codebooks.append(read_codebook(blob))
    assert blobs.keys() == header["tensors"].keys()
    tensors = {}
    for name, (spec_number, shape, sizes, crc32) in header["tensors"].items():
        spec = header["specs"][spec_number]
        assert zlib.crc32(canonical([name, spec, shape, sizes]) + blobs[name]) == crc32
        assert sum(sizes) == len(blobs[name])
        reader = Bytes(blobs[name])
        sections = {section: reader.take(n) for section, n in zip(SECTIONS[spec["codec"]], sizes, strict=True)}
        codebook = codebooks[spec["codebook"]] if "codebook" in spec else None
        tensors[name] = (spec, tuple(shape), sections, codebook)
    return header, tensors


def read_tables(reader):
    """Section 6: precision and ``[(offset, frequencies, sums)]``, escapes last."""
    (precision,) = reader.take(1)
    tables = []
    for _ in range(reader.varint()):
        offset = reader.zigzag()
        freq = [reader.varint() for _ in range(reader.varint())]
        freq.append((1 << precision) - sum(freq))
        assert freq[-1] >= 1
        tables.append((offset, freq, [sum(freq[:s]) for s in range(len(freq))]))
    return precision, tables


def read_codebook(blob):
    reader = Bytes(blob)
    states, length = reader.varint(), reader.varint()
    inner = Bytes(reader.take(length))
    precision, tables = read_tables(inner)
    inner.end()
    shifts = {}
    for number, (offset, freq, _) in enumerate(tables):
        for k in range(-4, 5):
            if 0 <= k - offset < len(freq) - 1 and freq[k - offset] > 0:
                shifts[number, k] = int.from_bytes(reader.take(1), "little", signed=True)
    reader.end()
    return {"states": states, "precision": precision, "tables": tables, "shifts": shifts}


def read_level_vector(reader, count):
    (k,) = reader.take(1)
    centre = reader.zigzag()
    if k == 255:
        return [centre] * count
    bits = bits_of(reader.take(reader.varint()))
    at, quotients, levels = 0, [], []
    for _ in range(count):
        quotients.append(bits.index(1, at) - at)
        at += quotients[-1] + 1
    for quotient in quotients:
        remainder = sum(bits[at + i] << i for i in range(k))
        at += k
        levels.append(centre + unzigzag(quotient << k | remainder))
    assert len(bits) - at < 8
    assert not any(bits[at:])
    return levels


class Lane:
    """Section 5.3: one lane's state, words and escaped values."""

    def __init__(self, state):
        self.x, self.words, self.escapes = state, [], []

    def symbol(self, table, precision):
        offset, freq, sums = table
        slot = self.x & ((1 << precision) - 1)
        k = max(s for s in range(len(freq)) if sums[s] <= slot and freq[s] > 0)
        self.x = freq[k] * (self.x >> precision) + slot - sums[k]
        if self.x < 1 << 16:
            self.x = self.x << 16 | self.words.pop(0)
        return self.escapes.pop(0) if k == len(freq) - 1 else offset + k

    def end(self):
        assert self.x == 1 << 16
        assert not self.words
        assert not self.escapes


def read_lanes(data, count):
    if not count:
        assert data == b""
        return []
    reader = Bytes(data)
    fewest = reader.varint()
    num_words = [fewest + reader.varint() for _ in range(count)]
    lanes = [Lane(int.from_bytes(reader.take(4), "little")) for _ in range(count)]
    for lane, n in zip(lanes, num_words):
        lane.words = [int.from_bytes(reader.take(2), "little") for _ in range(n)]
    if reader.varint():
        num_escapes = [reader.varint() for _ in range(count)]
        for lane, n in zip(lanes, num_escapes):
            lane.escapes = [reader.zigzag() for _ in range(n)]
    reader.end()
    return lanes


def decode_lattice(spec, shape, sections, codebook):
    """Section 5: indices, coefficients."""
    rows, cols = matrix(shape)
    if rows * cols == 0:
        return np.zeros((rows, cols), np.int32), np.zeros((rows, cols), np.float32)
    reader = Bytes(sections["levels"])
    base = np.frombuffer(reader.take(4), "<f4")[0]
    r, c, a, b = (read_level_vector(reader, n) for n in (rows, cols, rows, cols))
    reader.end()
    per_lane = spec["rows_per_lane"]
    lanes = read_lanes(sections["lanes"] + sections["indices"], -(-rows // per_lane))
    states, tables = codebook["states"], codebook["tables"]
    parities = 1 if states == 1 else 2
    q, points = np.zeros((rows, cols), np.int64), np.zeros((rows, cols), np.float32)
    for i in range(rows):
        lane, state = lanes[i // per_lane], 0
        for j in range(cols):
            scale_class = min(max((a[i] + b[j]) >> spec["class_shift"], 0), len(tables) // parities - 1)
            number = parities * scale_class + (state & 1)
            k = lane.symbol(tables[number], codebook["precision"])
            q[i, j] = k if states == 1 else 2 * k + (state & 1)
            points[i, j] = q[i, j] + codebook["shifts"].get((number, k), 0) / 64
            if states > 1:
                h0, h1 = PARITY_CHECKS[states]
                state = (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ ((k & 1) * (h1 >> 1))
    for lane in lanes:
        lane.end()
    resolution = spec["resolution"]
    row_resolution = spec.get("row_resolution", resolution)
    row_factor = np.array([float(base) * 2 ** (level / row_resolution) for level in r]).astype(np.float32)
    col_factor = np.array([2 ** (level / resolution) for level in c]).astype(np.float32)
    return q.astype(np.int32), points * col_factor[None, :] * row_factor[:, None]


def decode_affine(spec, shape, sections):
    rows, cols = matrix(shape)
    bits, group, groups = spec["bits"], spec["group_size"], -(-cols // spec["group_size"])
    scale_rows = 1 if spec["shared"] else rows
    scales = np.frombuffer(sections["scales"], "<f2").astype(np.float32).reshape(scale_rows, groups)
    zero = np.zeros((scale_rows, groups), np.int32)
    q = np.array(packed(sections["indices"], bits, rows * cols), np.int32).reshape(rows, cols)
    if spec["symmetric"]:
        q -= 1 << (bits - 1)
    else:
        zero = np.array(packed(sections["zero_points"], bits, scales.size), np.int32).reshape(zero.shape)
    column = np.arange(cols) // group
    return q, scales[:, column] * (q - zero[:, column]).astype(np.float32)


def decode_raw(spec, shape, sections):
    data = sections["values"]
    if spec["dtype"] == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, {"float32": "<f4", "float16": "<f2"}[spec["dtype"]]).astype(np.float32).reshape(shape)


def transform_matrix(spec, n, reader):
    """Section 7: the matrix T of a transform of vectors of length n, in float64."""
    name, index = spec["name"], np.arange(n)
    if name == "identity":
        return np.eye(n)
    if name == "dct":
        t = np.cos(np.pi * (2 * index[None, :] + 1) * index[:, None] / (2 * n)) * math.sqrt(2 / n)
        t[0] /= math.sqrt(2)
        return t
    if name == "real_fft":
        spectrum = np.exp(-2j * np.pi * np.outer(index, index) / n) / math.sqrt(n)
        rows = [spectrum[0].real]
        for k in range(1, n // 2 + 1):
            alone = 2 * k == n
            rows += [spectrum[k].real] if alone else [math.sqrt(2) * spectrum[k].real, math.sqrt(2) * spectrum[k].imag]
        return np.array(rows)
    if name == "hadamard":
        assert spec["size"] == n
        signs = np.ones(n)
        if spec["signs"]:
            signs = 1 - 2 * np.array(bits_of(reader.take((n + 7) // 8))[:n])
        power = n & -n
        m = n // power
        angle = 2 * np.pi * np.outer(np.arange(m), np.arange(m)) / m
        hartley = (np.cos(angle) + np.sin(angle)) / math.sqrt(m)
        sylvester = [[(-1) ** bin(i & j).count("1") / math.sqrt(power) for j in range(power)] for i in range(power)]
        return np.kron(hartley, np.array(sylvester)) * signs[None, :]
    if name in ("rotation", "klt"):
        assert spec["size"] == n
        stored = stored_matrix(n, spec["exponent"], reader)
        if name == "klt":
            reader.take(4 * n)
        return stored
    if name == "inverse":
        return np.linalg.inv(transform_matrix(spec["of"], n, reader))
    if name == "chain":
        t = np.eye(n)
        for link in spec["of"]:
            t = transform_matrix(link, n, reader) @ t
        return t
    if name == "kronecker":
        t = np.eye(1)
        for factor, size in zip(spec["of"], spec["sizes"], strict=True):
            t = np.kron(t, transform_matrix(factor, size, reader))
        return t
    if name == "scaling":
        assert spec["size"] == n
        return np.diag(2.0 ** (np.array(read_level_vector(reader, n)) / 2 ** spec["exponent"]))
    if name == "plane_rotation":
        assert spec["size"] == n
        levels = read_level_vector(reader, n // 2)
        t = np.eye(n)
        for k, level in enumerate(levels):
            i, j, angle = k, k + n - n // 2, level * math.pi / 2 ** spec["exponent"]
            c, s = math.cos(angle), math.sin(angle)
            t[i], t[j] = c * t[i] - s * t[j], s * t[i] + c * t[j]
        return t
    if name == "block_diagonal":
        t = np.zeros((n, n))
        for k, block in enumerate(spec["of"]):
            place = slice(k * spec["size"], (k + 1) * spec["size"])
            t[place, place] = transform_matrix(block, spec["size"], reader)
        return t
    if name == "butterfly":
        assert spec["size"] == n
        return butterfly_matrix(n, spec["sweeps"], spec["exponent"], reader)
    assert name == "blockwise"
    return np.kron(np.eye(n // spec["size"]), transform_matrix(spec["of"], spec["size"], reader))


def butterfly_matrix(n, sweeps, exponent, reader):
    """Section 7.2."""
    strides = [2**k for k in range(20) if 2**k < n]
    pairs = [(i, i + s) for s in strides for i in range(n) if i // s % 2 == 0 and i + s < n]
    t = np.eye(n)
    for sweep in range(sweeps):
        for (i, j), level in zip(pairs, read_level_vector(reader, len(pairs)), strict=True):
            i, j = (n - 1 - i, n - 1 - j) if sweep % 2 else (i, j)
            angle = level * math.pi / 2**exponent
            c, s = math.cos(angle), math.sin(angle)
            t[i], t[j] = c * t[i] - s * t[j], s * t[i] + c * t[j]
    return t


def stored_matrix(n, exponent, reader):
    """Section 7.1."""
    table, data, fill = (reader.take(reader.varint()) for _ in range(3))
    assert not any(fill)
    precision, tables = read_tables(Bytes(table))
    per_lane = min(n, max(1, 16384 // n))
    lanes = read_lanes(data, -(-n // per_lane))
    q = [[lanes[i // per_lane].symbol(tables[0], precision) for _ in range(n)] for i in range(n)]
    for lane in lanes:
        lane.end()
    m = np.array(q, np.float64) * 2.0**-exponent
    for _ in range(3):
        m = 1.5 * m - 0.5 * m @ m.T @ m
    assert np.abs(m @ m.T - np.eye(n)).max() <= 1e-4
    return m.astype(np.float32).astype(np.float64)


def matrix(shape):
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def decode(spec, shape, sections, codebook):
    """Indices (or None) and values of one tensor; for codec ``transform``, its matrix as the values."""
    if spec["codec"] == "raw":
        return None, decode_raw(spec, shape, sections)
    reader = Bytes(sections["transforms"])
    if spec["codec"] == "transform":
        t = transform_matrix(spec["transform"], shape[0], reader)
        reader.end()
        return None, t
    if spec["codec"] in ("lattice", "offset_lattice"):
        q, y = decode_lattice(spec, shape, sections, codebook)
        if "offset" in sections:
            offset = np.frombuffer(sections["offset"], "<f2").astype(np.float32)
            assert len(offset) == matrix(shape)[1]
            assert np.isfinite(offset).all()
            y = (y + offset).astype(np.float32)
    else:
        q, y = decode_affine(spec, shape, sections)
    rows, cols = matrix(shape)
    for side, n in (("left", rows), ("right", cols)):
        if side in spec:
            undo = np.linalg.inv(transform_matrix(spec[side], n, reader))
            y = undo @ y if side == "left" else y @ undo.T
    reader.end()
    return q.reshape(shape), y.reshape(shape)
