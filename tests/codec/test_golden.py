"""The frozen files of format version 1: read by the library and by a decoder written from the specification alone."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.codec import (
    decode_indices,
    decode_tensors,
    decode_transform,
    open_container,
    write_container,
)
from occ_jax.codec.coding import CODECS
from occ_jax.codec.header import CODEBOOK_PREFIX
from occ_jax.codec.spec import _FORMS

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {"format_1": 11, "format_1_offsets": 4}
"""Names of the files, and how many tensors with indices are in each at least."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.fixture(scope="module", params=FILES)
def file(request):
    return GOLDEN / f"{request.param}.occ.safetensors"


@pytest.fixture(scope="module")
def expected(file):
    with np.load(file.with_name(file.name.replace(".occ.safetensors", ".npz"))) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def container(file):
    with open_container(file) as opened:
        yield opened


def test_the_library_finds_the_same_integers(file, container, expected):
    names = [key[2:] for key in expected if key.startswith("q/")]
    assert len(names) >= FILES[file.name.removesuffix(".occ.safetensors")]
    for name, q in zip(names, decode_indices([container[name] for name in names])):
        np.testing.assert_array_equal(q, expected[f"q/{name}"], err_msg=name)


def test_the_library_finds_the_same_weights(container, expected):
    names = [key[2:] for key in expected if key.startswith("w/")]
    for name, w in zip(names, decode_tensors([container[name] for name in names])):
        if {"left", "right"} & set(container[name].spec):
            np.testing.assert_allclose(w, expected[f"w/{name}"], atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(w, expected[f"w/{name}"], err_msg=name)


def test_the_plain_decoder_finds_them_too(file, container, expected, plain_decoder):
    header, tensors = plain_decoder.read_file(file)
    assert header["model"] == {"note": "golden file of format version 1"} == container.model
    assert sorted(tensors) == sorted(container.names)
    for name, parts in tensors.items():
        q, values = plain_decoder.decode(*parts)
        if q is not None:
            np.testing.assert_array_equal(q, expected[f"q/{name}"], err_msg=name)
        if parts[0]["codec"] == "transform":
            basis = np.asarray(decode_transform(container[name]).forward(jnp.eye(len(values))))
            np.testing.assert_allclose(values.T, basis, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_allclose(values, expected[f"w/{name}"], rtol=3e-7, atol=2e-6, err_msg=name)


def test_the_files_hold_every_codec_and_trellis():
    codecs, states = set(), set()
    for name in FILES:
        with open_container(GOLDEN / f"{name}.occ.safetensors") as container:
            codecs |= {spec["codec"] for spec in container.header.specs}
            books = (container[name].codebook for name in container)
            states |= {book.num_states for book in books if book is not None}
    assert codecs == set(CODECS)
    assert states == {1, 4, 8, 16, 32, 64, 128, 256}
    with open_container(GOLDEN / "format_1.occ.safetensors") as container:
        assert len(container["zeros"].sections["padding"]) > 0


def test_what_was_read_is_written_back_byte_for_byte(file, container, tmp_path):
    copy = tmp_path / "copy.occ.safetensors"
    tensors = {name: container[name] for name in container}
    write_container(copy, tensors, model=container.model, producer=container.header.producer)
    assert copy.read_bytes() == file.read_bytes()


def test_the_plain_decoder_reads_fresh_files(kinds, plain_decoder, tmp_path):
    path = tmp_path / "fresh.occ.safetensors"
    write_container(path, kinds)
    _, tensors = plain_decoder.read_file(path)
    for (name, coded), w in zip(sorted(kinds.items()), decode_tensors([kinds[name] for name in sorted(kinds)])):
        q, values = plain_decoder.decode(*tensors[name])
        np.testing.assert_allclose(values, w, rtol=3e-7, atol=2e-6, err_msg=name)
        if q is not None:
            np.testing.assert_array_equal(q, decode_indices([coded])[0])


def test_the_document_names_everything_there_is():
    text = DOCUMENT.read_text()
    for word in [*CODECS, *_FORMS, CODEBOOK_PREFIX.rstrip(".")]:
        assert f"`{word}" in text, word
    for codec in CODECS.values():
        for section in codec.sections:
            assert f"`{section}`" in text, section
