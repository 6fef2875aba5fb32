"""The header reader against the gguf package, and against headers that lie."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from occ_llm.checkpoints.gguf_header import read_gguf_header
from occ_llm.errors import OccError

U32, U64, STRING, ARRAY = 4, 10, 8, 9


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(*, version: int = 3, keys: list[bytes] = (), tensors: list[bytes] = (), data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def read(path: Path, content: bytes):
    path.write_bytes(content)
    return read_gguf_header(path)


def test_every_type_of_value_as_the_package_writes_it(tmp_path):
    values = {
        "u8": ("uint8", 200),
        "i8": ("int8", -100),
        "u16": ("uint16", 60000),
        "i16": ("int16", -30000),
        "u32": ("uint32", 4_000_000_000),
        "i32": ("int32", -2_000_000_000),
        "u64": ("uint64", 2**63),
        "i64": ("int64", -(2**62)),
        "f32": ("float32", 0.5),
        "f64": ("float64", 0.1),
        "yes": ("bool", True),
        "no": ("bool", False),
        "text": ("string", "Grüße 日本"),
        "words": ("array", ["a", "", "Ġx", "日"]),
        "ids": ("array", [1, -2, 3]),
        "floats": ("array", [0.5, -0.25]),
        "flags": ("array", [True, False]),
    }
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, (kind, value) in values.items():
        getattr(writer, f"add_{kind}")(name, value)
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, places = read_gguf_header(tmp_path / "x.gguf")
    assert {name: metadata[name] for name in values} == {name: value for name, (_, value) in values.items()}
    assert metadata["general.architecture"] == "llama"
    assert (places["a"].shape, places["b"].shape) == ((2, 3), (5,))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "x.gguf", "<f2", 5, offset=places["b"].offset), np.arange(5))


def test_empty_values(tmp_path):
    keys = [key("", STRING, string("")), key("none", ARRAY, struct.pack("<IQ", U32, 0))]
    metadata, places = read(
        tmp_path / "x.gguf", header(keys=keys, tensors=[tensor("a", (0, 4)), tensor("", ())], data=bytes(4))
    )
    assert metadata == {"": "", "none": []}
    assert [place.num_bytes for place in places.values()] == [0, 4]


def test_a_model_file_is_read_as_the_package_reads_it(tmp_path, make_config, make_weights, write_gguf):
    config = make_config()
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config), gguf.GGMLQuantizationType.Q4_1)
    metadata, places = read_gguf_header(file)
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert metadata == fields
    assert list(places) == [tensor.name for tensor in reader.tensors]
    for expected in reader.tensors:
        place = places[expected.name]
        assert place.kind == expected.tensor_type
        assert place.shape == tuple(reversed(expected.shape.tolist()))
        assert (place.offset, place.num_bytes) == (expected.data_offset, expected.n_bytes)


def test_alignment_of_the_data(tmp_path):
    align = key("general.alignment", U32, struct.pack("<I", 256))
    head = header(keys=[align], tensors=[tensor("a", (4,))])
    content = head + bytes(256 - len(head) % 256) + bytes(16)
    _, places = read(tmp_path / "x.gguf", content)
    assert places["a"].offset % 256 == 0


def test_version_2_is_read_and_others_are_not(tmp_path):
    assert read(tmp_path / "x.gguf", header(version=2)) == ({}, {})
    for version in (0x01, 4, 2**31):
        with pytest.raises(OccError, match=r"x\.gguf: .*(version|byte order)"):
            read(tmp_path / "x.gguf", header(version=version))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"GGU", "does not begin with GGUF"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (header(keys=[key("a", 99, b"")]), "99"),
        (header(keys=[key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "ARRAY"),
        (header(keys=[key("a", ARRAY, struct.pack("<IQ", STRING, 2**60))]), "ends at byte|requires a buffer"),
        (header(keys=[key("a", ARRAY, struct.pack("<IQ", U64, 2**60))]), "numbers end at byte"),
        (header(keys=[key("a", STRING, struct.pack("<Q", 2**63))]), "a string ends at byte"),
        (header(keys=[key("a", STRING, struct.pack("<Q", 2) + b"\xff\xff")]), "utf-8"),
        (header(keys=[key("general.alignment", U32, struct.pack("<I", 0))]), "alignment is 0"),
        (header(tensors=[tensor("a", (4,)), tensor("a", (4,))], data=bytes(16)), "occurs twice"),
        (header(tensors=[tensor("a", (1,) * 5)], data=bytes(16)), "5 dimensions"),
        (header(tensors=[tensor("a", (4,))]), "ends at byte"),
        (header(tensors=[tensor("a", (2**40, 2**40))], data=bytes(16)), "ends at byte"),
        (header(tensors=[tensor("a", (4,), offset=2**60)], data=bytes(16)), "ends at byte"),
        (header(tensors=[tensor("a", (4,), kind=77)], data=bytes(16)), "77"),
        (header(tensors=[tensor("a", (33,), kind=2)], data=bytes(100)), "not blocks of 32"),
    ],
)
def test_headers_that_lie(tmp_path, content, words):
    with pytest.raises(OccError, match=rf"x\.gguf: not a complete GGUF file \(.*({words}).*\); download it again"):
        read(tmp_path / "x.gguf", content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_ends_in_an_error_or_a_header(tmp_path_factory, data):
    keys = [
        key("a", U32, bytes(4)),
        key("b", STRING, string("xy")),
        key("c", ARRAY, struct.pack("<IQ", U32, 2) + bytes(8)),
    ]
    content = bytearray(header(keys=keys, tensors=[tensor("t", (2, 32), kind=2)], data=bytes(36)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, len(content) - 37))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    file = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    try:
        _, places = read(file, bytes(content))
    except OccError:
        return
    assert all(place.offset + place.num_bytes <= len(content) for place in places.values())
