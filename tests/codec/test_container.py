"""The file: lazy reading, a ledger that adds up, and one clear sentence for all that is wrong."""

import dataclasses
import json
import resource
import struct
import zlib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from occ_jax.codec import (
    FormatError,
    decode_tensor,
    encode_raw,
    ledger,
    open_container,
    tensor_ledger,
    write_container,
)
from occ_jax.codec.header import MAX_HEADER_BYTES, parse_header
from occ_jax.codec.tensor import canonical_json


def rewrite(path, change, *, checksum=True):
    """Edit the JSON header of a file; ``change`` gets the parsed header and the byte strings, and edits them."""
    with safe_open(path, framework="np") as file:
        text = file.metadata()["occ"]
        blobs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    body = json.loads(text)
    recorded = body.pop("crc32")
    change(body, blobs)
    rest = canonical_json(body).decode()[1:]
    crc32 = f"{zlib.crc32(rest.encode()):08x}" if checksum else recorded
    save_file(blobs, path, metadata={"occ": f'{{"crc32":"{crc32}",{rest}'})


def refused(path, match, *, read=False):
    def attempt():
        with open_container(path) as container:
            for name in container if read else ():
                decode_tensor(container[name])

    with pytest.raises(FormatError, match=match) as caught:
        attempt()
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 400
    assert message.rstrip(".").rsplit(";" if ";" in message else ":", 1)[1].strip()  # says what to do


def test_everything_comes_back(path, kinds, model):
    with open_container(path) as container:
        assert container.model == model
        assert sorted(container) == sorted(kinds) == sorted(container.names)
        assert len(container) == len(kinds)
        assert "norm" in container
        assert "nothing" not in container
        assert container.header.producer == "test 1"
        for name, coded in kinds.items():
            again = container[name]
            assert again.sections == coded.sections
            assert again.shape == coded.shape
            assert dict(again.spec) == dict(coded.spec)
            np.testing.assert_array_equal(decode_tensor(again), decode_tensor(coded))


def test_any_safetensors_library_can_open_it(path, kinds):
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        assert set(kinds) <= names
        assert {name for name in names - set(kinds) if not name.startswith("occ.codebook.")} == set()
        assert all(file.get_tensor(name).dtype == np.uint8 for name in names)
        assert list(file.metadata()) == ["occ"]


def test_shared_codebooks_and_specs_are_written_once(path, kinds):
    with open_container(path) as container:
        distinct = {id(coded.codebook) for coded in kinds.values() if coded.codebook is not None}
        assert len(container.header.codebooks) == len(distinct) < len(kinds)
        assert container["trellis.0"].codebook is container["trellis.1"].codebook
        assert len({json.dumps(spec, sort_keys=True) for spec in container.header.specs}) == len(container.header.specs)


def test_specs_are_compared_by_what_they_say(tmp_path, kinds):
    """Fields in another order, as those of a file that was read, are no other spec."""
    coded = encode_raw(np.ones((2, 4), np.float32))
    spec = {**coded.spec, "note": {"b": 1, "a": 2}}
    turned = {"note": {"a": 2, "b": 1}, **coded.spec}
    both = {name: dataclasses.replace(coded, spec=fields) for name, fields in (("x", spec), ("y", turned))}
    write_container(tmp_path / "both", both)
    write_container(tmp_path / "same", dict.fromkeys("xy", both["x"]))
    assert (tmp_path / "both").read_bytes() == (tmp_path / "same").read_bytes()


def test_the_ledger_adds_up_to_the_size_of_the_file(path, kinds):
    lines = ledger(path)
    assert sum(lines.values()) == path.stat().st_size
    assert all(count > 0 for count in lines.values())
    for section in ("indices", "lanes", "levels", "scales", "zero_points", "transforms", "values"):
        assert lines[section] == sum(len(coded.sections.get(section, b"")) for coded in kinds.values())
    by_tensor = tensor_ledger(path)
    assert {name: sum(sections.values()) for name, sections in by_tensor.items()} == {
        name: coded.num_bytes for name, coded in kinds.items()
    }


def test_the_ledger_knows_the_header_byte_by_byte(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    lines = ledger(path)
    assert lines["safetensors_header"] + lines["occ_header"] + lines.get("alignment", 0) == 8 + size
    with open_container(path) as container:
        text = container.occ_header_text
    assert lines["occ_header"] == len(json.dumps(text)) - 2


def test_a_file_of_nothing(tmp_path):
    path = tmp_path / "empty.occ.safetensors"
    write_container(path, {})
    with open_container(path) as container:
        assert container.names == ()
        assert container.model is None
    assert sum(ledger(path).values()) == path.stat().st_size


def test_equal_input_gives_equal_files(kinds, model, tmp_path):
    first, second = tmp_path / "a.occ.safetensors", tmp_path / "b.occ.safetensors"
    write_container(first, kinds, model=model)
    write_container(second, dict(reversed(kinds.items())), model=model)
    assert first.read_bytes() == second.read_bytes()


def test_reading_is_lazy(path):
    """A damaged tensor does not keep the others from being read."""
    with open_container(path) as container:
        size = sum(container.header.tensors["norm"].sizes)
    data = bytearray(path.read_bytes())
    with safe_open(path, framework="np") as file:
        blob = file.get_tensor("norm").tobytes()
    at = bytes(data).index(blob)
    data[at + size - 1] ^= 1
    path.write_bytes(data)
    with open_container(path) as container:
        decode_tensor(container["affine"])
        with pytest.raises(FormatError, match="tensor 'norm', is damaged: its checksum does not match"):
            container["norm"]


# Bad files.


def test_missing_files_and_tensors(path, tmp_path):
    with pytest.raises(FormatError, match=r"nowhere.*cannot be opened \(No such file or directory\): check the path"):
        open_container(tmp_path / "nowhere.occ.safetensors")
    with (
        open_container(path) as container,
        pytest.raises(FormatError, match=r"has no tensor 'lm_head': it holds 8 .*check the name"),
    ):
        container["lm_head"]
    with pytest.raises(FormatError, match="cannot be opened"):
        open_container(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_files(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "damaged")


def test_files_with_something_behind(path):
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "damaged")


def test_other_safetensors_files(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path)
    refused(path, "without an occ header: give a file")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refused(path, "damaged")


def test_headers_that_announce_too_much(path):
    data = path.read_bytes()
    for announced in (2**60, 2**63, 2**64 - 1, len(data)):
        path.write_bytes(struct.pack("<Q", announced) + data[8:])
        refused(path, "truncated")
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse
    refused(path, "at most")


def test_a_future_version_is_told_from_damage(path):
    rewrite(path, lambda body, _: body.update(version=2))
    refused(path, r"written by a newer occ_jax \(format version 2, this one reads 1\): upgrade occ_jax")
    rewrite(path, lambda body, _: body.update(version=1, requires=["sparse"]))
    refused(path, r"newer occ_jax \(it requires 'sparse'\)")


def test_unknown_optional_fields_are_ignored(path, kinds):
    rewrite(path, lambda body, _: body.update(comment="hello", requires=[]))
    with open_container(path) as container:
        np.testing.assert_array_equal(decode_tensor(container["norm"]), decode_tensor(kinds["norm"]))


def test_a_header_edit_without_its_checksum(path):
    rewrite(path, lambda body, _: body.update(producer="me"), checksum=False)
    refused(path, "checksum of its occ header")


def entry(name, place, value):
    def change(body, _):
        body["tensors"][name][place] = value

    return change


def spec_of(name, **fields):
    def change(body, _):
        body["specs"][body["tensors"][name][0]].update(fields)

    return change


@pytest.mark.parametrize(
    "shape", [[2**60], [2**31], [9, 2**60], [2**31 - 1] * 3, [1] * 9, [-1], [True], [1.0], "x", None]
)
def test_shapes_that_no_tensor_has(path, shape):
    rewrite(path, entry("trellis.0", 1, shape))
    refused(path, "shape")


@pytest.mark.parametrize("shape", [[2**31 - 1], [10**7, 14], [9, 15], [2**30, 0], []])
def test_shapes_that_the_bytes_cannot_hold(path, shape):
    for name in ("trellis.0", "affine", "norm"):
        rewrite(path, entry(name, 1, shape))
        refused(path, "damaged", read=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (entry("norm", 0, 99), "names spec 99"),
        (entry("norm", 0, -1), "names spec -1"),
        (entry("norm", 0, 2**60), "names spec"),
        (entry("norm", 2, [2**60]), "section lengths|bytes"),
        (entry("norm", 2, [39]), "has 40 bytes"),
        (entry("norm", 2, [40, 0]), "2 sections"),
        (entry("norm", 3, -5), "checksum"),
        (entry("norm", 3, 2**32), "checksum"),
        (lambda body, _: body["tensors"].update(norm=[1]), "entry"),
        (lambda body, _: body["tensors"].update(extra=[0, [1], [4], 0]), "announced and not there"),
        (lambda body, _: body["tensors"].pop("norm"), "there and not announced"),
        (lambda body, _: body.update(tensors=[]), "no tensors"),
        (lambda body, _: body.update(producer=7), "producer"),
        (lambda body, _: body.update(specs={}), "specs"),
        (lambda body, _: body.update(specs=[1]), "specs"),
        (lambda body, _: body.update(codebooks=[1]), "there and not announced"),
        (lambda body, _: body.update(codebooks=body["codebooks"] + [1]), "announced and not there"),
        (lambda body, _: body.update(codebooks="x"), "codebooks"),
        (lambda body, _: body.update(version="1"), "format version"),
        (lambda body, _: body.update(version=2**60), "newer"),
        (lambda body, _: body.update(version=10**4000), "newer"),
        (lambda body, _: body.update(version=True), "format version"),
        (lambda body, _: body.update(requires=3), "required"),
        (spec_of("norm", codec="video"), "newer occ_jax .*video"),
        (spec_of("norm", codec=5), "codec"),
        (lambda _, blobs: blobs.update(norm=np.zeros(10, np.float32)), "not a string of bytes"),
        (lambda _, blobs: blobs.update(norm=np.zeros((2, 20), np.uint8)), "not a string of bytes"),
    ],
)
def test_headers_that_contradict_the_file(path, change, match):
    rewrite(path, change)
    refused(path, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (entry("norm", 3, 5), "checksum does not match"),
        (spec_of("affine", bits=3, extra=1), "checksum does not match"),
        (spec_of("trellis.0", codebook=99), "codebook 99"),
        (spec_of("trellis.0", codebook=-1), "checksum|codebook"),
        (lambda body, _: body["codebooks"].__setitem__(0, 7), "codebook 0, is damaged: its checksum"),
    ],
)
def test_contradictions_that_show_when_a_tensor_is_read(path, change, match):
    rewrite(path, change)
    with open_container(path):
        pass
    refused(path, "damaged", read=True)
    del match


@pytest.mark.parametrize("text", ["", "{}", '{"crc32":"00000000",', "[" * 5000, '{"crc32":"zzzzzzzz",}'])
def test_texts_that_are_no_header(text):
    with pytest.raises(FormatError, match="damaged"):
        parse_header(text, {}, "file")


@pytest.mark.parametrize(
    "rest",
    [
        "}",
        "[" * 100_000,
        '"version":1,"specs":[{"x":NaN}]}',
        '"version":1e999}',
        f'"version":{"9" * 5000}}}',
        '"a":\ud800}',
    ],
)
def test_json_traps_behind_a_good_checksum(rest):
    crc32 = zlib.crc32(rest.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError, match="damaged"):
        parse_header(f'{{"crc32":"{crc32:08x}",{rest}', {}, "file")


def test_opening_needs_no_memory_for_what_it_announces(path):
    """The largest claims that pass for numbers are refused without being believed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ([2**24, 2**24], [2**31 - 1, 2**16], [2**31 - 1, 0]):
        rewrite(path, entry("trellis.0", 1, shape))
        refused(path, "damaged", read=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
