"""GGUF files that are cut, flipped, foreign or not finite: a sentence that names the file, never a crash or a hang."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from occ_llm.checkpoints.gguf import is_gguf_file, read_gguf_file
from occ_llm.errors import OccError


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, make_config, make_weights, write_gguf) -> Path:
    config = make_config("llama", num_layers=1, hidden_size=32, intermediate_size=32, num_heads=1, num_kv_heads=1)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", config, make_weights(config))


def test_truncated_files_are_refused_wherever_they_end(tmp_path, small_file):
    content = small_file.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 10, 24, 40, *range(100, len(content) - 1, len(content) // 60), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(OccError, match=r"cut\.gguf: .*download") as error:
            read_gguf_file(file)
        assert "\n" not in str(error.value)


def test_a_header_that_lies_about_sizes_is_refused_at_once(tmp_path, small_file):
    content = bytearray(small_file.read_bytes())
    file = tmp_path / "liar.gguf"
    key = b"tokenizer.ggml.token_type"
    at = content.index(key) + len(key) + 4 + 4  # past the type and the item type: the number of items
    for place in (8, 16, at):  # number of tensors, of keys, of items
        for lie in (2**60, 2**63 - 1, 2**31):
            changed = bytearray(content)
            changed[place : place + 8] = struct.pack("<Q", lie)
            file.write_bytes(changed)
            with pytest.raises(OccError, match=r"liar\.gguf"):
                read_gguf_file(file)


def test_flipped_bytes_end_in_an_error_or_a_model(tmp_path, small_file):
    content = small_file.read_bytes()
    rng = np.random.default_rng(0)
    file = tmp_path / "flipped.gguf"
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        for place in rng.integers(0, 2000, size=3):
            changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            weights = read_gguf_file(file).weights
            assert all(np.isfinite(w).all() for w in weights.values())
        except OccError as error:
            refused += str(file) in str(error)
    assert refused > 20


def test_damaged_scales_are_not_finite_and_refused(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    weights = make_weights(config)
    weights["model.layers.0.mlp.up_proj.weight"][3, 7] = np.nan
    weights["model.norm.weight"][0] = -np.inf
    checkpoint = read_gguf_file(write_gguf(tmp_path / "m.gguf", config, weights))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        with pytest.raises(OccError, match=rf"m\.gguf: tensor {name} holds NaN or infinite"):
            checkpoint.weights[name]
    assert np.isfinite(checkpoint.weights["model.embed_tokens.weight"]).all()


def test_a_file_that_shrinks_or_goes_while_it_is_read(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config))
    checkpoint = read_gguf_file(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OccError, match=r"m\.gguf: ends within tensor .* restore the file"):
        sum(w.size for w in checkpoint.weights.values())
    file.unlink()
    with pytest.raises(OccError, match=r"m\.gguf: cannot be read any more"):
        checkpoint.weights["model.norm.weight"]


def test_missing_unknown_and_misshapen_tensors(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    weights = make_weights(config)

    def read(changes: dict, extra: dict | None = None):
        changed = {name: w for name, w in (weights | changes).items() if w is not None}
        return read_gguf_file(write_gguf(tmp_path / "m.gguf", config, changed, extra=extra))

    with pytest.raises(OccError, match=r"m\.gguf: model\.norm\.weight is missing"):
        read({"model.norm.weight": None})
    with pytest.raises(OccError, match=r"shape \(3,\) but the config asks for \(256,\)"):
        read({"model.norm.weight": np.ones(3, np.float32)})
    with pytest.raises(OccError, match=r"blk\.0\.attn_sinks is not part of the model"):
        read({}, {"blk.0.attn_sinks": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"split.count": 3}, "one part of a split model"),
        ({"llama.block_count": 2**31}, "layers but the weights are only"),
        ({"llama.block_count": 3}, "are missing"),
        ({"llama.vocab_size": 200}, "the tokenizer has 300 tokens but the embedding 200 rows"),
        ({"tokenizer.ggml.model": "t5"}, "'t5' is not supported"),
    ],
)
def test_models_that_cannot_be_used_name_the_file(tmp_path, make_config, make_weights, write_gguf, metadata, words):
    config = make_config("llama")
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config), metadata=metadata)
    with pytest.raises(OccError, match=rf"m\.gguf: .*{words}"):
        read_gguf_file(file)


def test_big_endian_and_foreign_files(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(OccError, match="byte order"):
        read_gguf_file(tmp_path / "big.gguf")
    (tmp_path / "text.gguf").write_text("nothing of the kind, but long enough to look at")
    with pytest.raises(OccError, match="not a complete GGUF file"):
        read_gguf_file(tmp_path / "text.gguf")
    with pytest.raises(OccError, match="no such file"):
        read_gguf_file(tmp_path / "none.gguf")


def test_what_counts_as_a_gguf_file(tmp_path, small_file):
    (tmp_path / "renamed.bin").write_bytes(small_file.read_bytes())
    (tmp_path / "notes.txt").write_text("GG")
    assert is_gguf_file(small_file)
    assert is_gguf_file(tmp_path / "renamed.bin")
    assert not is_gguf_file(tmp_path / "notes.txt")
    assert not is_gguf_file(tmp_path)
