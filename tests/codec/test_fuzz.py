"""Thousands of mutations of a valid file: all end in a clean error or in correct weights, in bounded memory and time.

Half of the mutations are followed by new checksums, so that they reach the parsers behind them; what decodes then may
be other weights, but must be a tensor of the size that was announced and checked.
"""

import json
import random
import resource
import struct
import time
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from occ_jax.codec import (
    FormatError,
    decode_tensor,
    decode_tensors,
    decode_transform,
    encode_transform,
    open_container,
    write_container,
)
from occ_jax.codec.header import tensor_crc32
from occ_jax.codec.tensor import MAX_ELEMENTS_PER_BYTE, canonical_json
from occ_jax.transforms import hadamard

RAW_MUTATIONS = 1400
CHECKED_MUTATIONS = 1400
EXTREMES = [
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**60,
    -(2**60),
    2**64,
    True,
    None,
    "",
    "x",
    [],
    {},
    0.5,
]


@pytest.fixture(scope="module")
def original(kinds, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.occ.safetensors"
    write_container(path, {**kinds, "basis": encode_transform(hadamard(12), 12)}, model={"rate": 2.5})
    return path


@pytest.fixture(scope="module")
def weights(original):
    with open_container(original) as container:
        return {name: read(container, name) for name in container}


def read(container, name):
    coded = container[name]
    if coded.spec["codec"] == "transform":
        return np.asarray(decode_transform(coded).forward(identity(coded.shape[0])))
    return decode_tensor(coded)


def identity(n):
    return jnp.eye(n)


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    at, count = rng.randrange(len(data)), rng.choice([1, 4, 8, 40])
    data[at : at + count] = rng.choice([bytes(count), b"\xff" * count, rng.randbytes(count)])[: len(data) - at]


def insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 3, 8, 64]))


def delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 8, 100])]


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def lie_about_length(data: bytearray, rng: random.Random) -> None:
    data[:8] = struct.pack(
        "<Q", rng.choice([0, 1, 2**16, 2**26, 2**26 + 1, 2**60, 2**63, 2**64 - 1, len(data), len(data) - 8])
    )


def swap(data: bytearray, rng: random.Random) -> None:
    a, b = sorted(rng.sample(range(len(data)), 2))
    data[a : a + 8], data[b : b + 8] = data[b : b + 8], data[a : a + 8]


BYTE_MUTATIONS = [flip, flip, overwrite, insert, delete, truncate, swap]


def outcome(path, name=None, rng=None):
    """Tensor name and weights of one tensor of a file whose parts were all read, or the error."""
    try:
        with open_container(path) as container:
            coded = {each: container[each] for each in container}
            if not coded:
                return None, None
            if name not in coded:
                name = rng.choice(sorted(coded))
            w = read(container, name)
            if coded[name].spec["codec"] != "transform":
                assert w.shape == coded[name].shape
                assert w.size <= MAX_ELEMENTS_PER_BYTE * max(coded[name].num_bytes, 1)
            return name, w
    except FormatError as error:
        return error, None


def test_mutated_bytes(original, weights, tmp_path):
    """Checksums left alone: damage is noticed, or it hit what does not matter, and the weights are correct."""
    rng, data = random.Random(1), original.read_bytes()
    path, refused = tmp_path / "mutant.occ.safetensors", 0
    for _ in range(RAW_MUTATIONS):
        mutant = bytearray(data)
        rng.choice([*BYTE_MUTATIONS, lie_about_length])(mutant, rng)
        path.write_bytes(mutant)
        name, w = outcome(path, rng=rng)
        if isinstance(name, FormatError):
            assert path.name in str(name)
            refused += 1
        else:
            np.testing.assert_array_equal(w, weights[name])
    assert refused > 0.9 * RAW_MUTATIONS


def mutate_json(value, rng: random.Random):
    """One random place of a JSON value replaced, dropped, doubled or nudged."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        copy = value.copy()
        if rng.random() < 0.08:
            del copy[key]
        elif rng.random() < 0.05 and isinstance(copy, list):
            copy.insert(key, copy[key])
        else:
            copy[key] = mutate_json(copy[key], rng)
        return copy
    if type(value) is int and rng.random() < 0.6:
        return value + rng.choice([-2, -1, 1, 2, 8, value])
    return rng.choice(EXTREMES)


def checked_mutant(text: str, blobs: dict[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    """A file with a mutation behind its checksums, all of them correct, and the name of what was mutated."""
    body, blobs = json.loads(text), dict(blobs)
    body.pop("crc32")
    name = rng.choice(list(blobs))
    if rng.random() < 0.55:
        blob = bytearray(blobs[name])
        (rng.choice(BYTE_MUTATIONS) if len(blob) > 1 else insert)(blob, rng)
        if name in body["tensors"]:
            sizes = body["tensors"][name][2]
            section = rng.randrange(len(sizes))
            sizes[section] = max(0, sizes[section] + len(blob) - len(blobs[name]))
        blobs[name] = bytes(blob)
    else:
        part = rng.choice(["specs", "specs", "tensors", "tensors", "codebooks"])
        if part == "codebooks" or name not in body["tensors"]:
            body[part] = mutate_json(body[part], rng)
        elif part == "specs":
            number = body["tensors"][name][0]
            body["specs"][number] = mutate_json(body["specs"][number], rng)
        else:
            body["tensors"][name] = mutate_json(body["tensors"][name], rng)
    if isinstance(body["codebooks"], list):
        numbers = range(len(body["codebooks"]))
        body["codebooks"] = [zlib.crc32(blobs.get(f"occ.codebook.{i}", b"")) for i in numbers]
    for each, record in body["tensors"].items() if isinstance(body["tensors"], dict) else ():
        try:
            record[3] = tensor_crc32(each, body["specs"][record[0]], record[1], record[2], blobs[each])
        except (TypeError, KeyError, IndexError):
            continue  # too broken for a checksum
    rest = canonical_json(body)[1:]
    header = f'{{"crc32":"{zlib.crc32(rest):08x}",{rest.decode()}'
    arrays = {each: np.frombuffer(blob, np.uint8) for each, blob in blobs.items()}
    return name, save(arrays, metadata={"occ": header})


def test_mutations_behind_correct_checksums(original, tmp_path):
    rng = random.Random(2)
    with safe_open(original, framework="np") as file:
        text = file.metadata()["occ"]
        blobs = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    path, refused, decoded = tmp_path / "mutant.occ.safetensors", 0, 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(CHECKED_MUTATIONS):
        name, mutant = checked_mutant(text, blobs, rng)
        path.write_bytes(mutant)
        start = time.process_time()
        result, _ = outcome(path, name, rng)
        assert time.process_time() - start < 20
        if isinstance(result, FormatError):
            assert path.name in str(result)
            refused += 1
        else:
            decoded += 1
    assert refused > 0.5 * CHECKED_MUTATIONS
    assert decoded > 0.02 * CHECKED_MUTATIONS  # the parsers behind the checksums were reached
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB


def test_the_original_survives(original, weights):
    with open_container(original) as container:
        names = [name for name in container if container[name].spec["codec"] != "transform"]
        for name, w in zip(names, decode_tensors([container[name] for name in names])):
            np.testing.assert_array_equal(w, weights[name])
