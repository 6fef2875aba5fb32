"""The tokenizer of a GGUF file against transformers and SentencePiece (recorded by scripts/record_tokenizers.py)."""

import json
from pathlib import Path

import gguf
import pytest
from occ_llm.checkpoints.gguf_pretokenizers import PRE_TOKENIZERS
from occ_llm.checkpoints.gguf_tokenizer import gguf_tokenizer_files
from occ_llm.errors import OccError
from tokenizers import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"

NORMAL, CONTROL, USER_DEFINED, UNUSED = (
    int(gguf.TokenType[name]) for name in ("NORMAL", "CONTROL", "USER_DEFINED", "UNUSED")
)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


def build(metadata: dict) -> Tokenizer:
    return Tokenizer.from_buffer(gguf_tokenizer_files(metadata)["tokenizer.json"])


def spelled_words(tokenizer: Tokenizer, text: str) -> list[str]:
    assert tokenizer.pre_tokenizer is not None
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return [text[begin:end] for begin, end in spans]


# -- byte-level vocabularies


def test_a_rebuilt_byte_level_tokenizer_is_the_one_that_was_stored(byte_level_tokenizer, byte_level_metadata):
    rebuilt = build(byte_level_metadata)
    assert rebuilt.get_vocab() == byte_level_tokenizer.get_vocab()
    for text in golden("pretokenizers.json")["texts"]:
        assert rebuilt.encode(text).ids == byte_level_tokenizer.encode(text).ids, text
        assert rebuilt.decode(rebuilt.encode(text).ids) == text


@pytest.mark.parametrize("name", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_words_are_those_of_transformers(byte_level_metadata, name):
    recorded = golden("pretokenizers.json")
    tokenizer = build(byte_level_metadata | {"tokenizer.ggml.pre": name})
    for text, words in zip(recorded["texts"], recorded["words"][name], strict=True):
        assert spelled_words(tokenizer, text) == words, text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_rule_keeps_every_character(byte_level_metadata, name):
    tokenizer = build(byte_level_metadata | {"tokenizer.ggml.pre": name})
    for text in golden("pretokenizers.json")["texts"]:
        assert "".join(spelled_words(tokenizer, text)) == text


def test_rules_differ_where_they_should(byte_level_metadata):
    def words(name: str, text: str) -> list[str]:
        return spelled_words(build(byte_level_metadata | {"tokenizer.ggml.pre": name}), text)

    assert words("gpt-2", "a 12345") == ["a", " 12345"]
    assert words("smollm", "a 12345") == ["a", " ", "1", "2", "3", "4", "5"]
    assert words("llama-bpe", "a 12345") == ["a", " ", "123", "45"]
    assert words("qwen2", "a 12345") == ["a", " ", "1", "2", "3", "4", "5"]
    assert words("default", "a+b") == ["a", "+", "b"]
    assert words("deepseek-coder", "x\n\ny") == ["x", "\n", "\n", "y"]


def test_qwen_text_is_normalised_first(byte_level_metadata):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    qwen, gpt2 = (build(byte_level_metadata | {"tokenizer.ggml.pre": name}) for name in ("qwen2", "gpt-2"))
    assert qwen.encode(decomposed).ids == qwen.encode(composed).ids
    assert gpt2.encode(decomposed).ids != gpt2.encode(composed).ids


def test_no_rule_means_the_default_rule_and_a_warning(byte_level_metadata, caplog):
    without = {key: value for key, value in byte_level_metadata.items() if key != "tokenizer.ggml.pre"}
    default = build(byte_level_metadata | {"tokenizer.ggml.pre": "default"})
    assert build(without).encode("a+b 1234").ids == default.encode("a+b 1234").ids
    assert "tokenizer.ggml.pre" in caplog.text


def test_a_word_that_is_a_token_ignores_the_merges_where_the_model_does(byte_level_metadata):
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"], "Hello"]
    added = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3)}
    llama = build(byte_level_metadata | added | {"tokenizer.ggml.pre": "smaug-bpe"})
    llama3 = build(
        byte_level_metadata | added | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    )
    assert len(llama.encode("Hello").ids) > 1
    assert llama3.encode("Hello").tokens == ["Hello"]


# -- special tokens


def test_control_tokens_are_special_and_user_defined_ones_only_whole(byte_level_metadata):
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"], "<think>", "<pad>", "<pad2>"]
    types = [*byte_level_metadata["tokenizer.ggml.token_type"], USER_DEFINED, UNUSED, UNUSED]
    tokenizer = build(byte_level_metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    think = tokens.index("<think>")
    ids = tokenizer.encode("a<think>b<|end|>").ids
    assert ids == [tokens.index("a"), think, tokens.index("b"), 2]
    assert tokenizer.decode(ids) == "a<think>b"
    assert tokenizer.token_to_id("<pad>") is None  # rows that only pad the embedding are no tokens
    assert tokenizer.get_vocab_size() == think + 1


@pytest.mark.parametrize(
    ("pre", "flags", "begins", "ends"),
    [
        ("gpt-2", {}, False, False),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False, False),
        ("qwen2", {"tokenizer.ggml.add_bos_token": True}, True, False),
        ("gpt-2", {"tokenizer.ggml.add_eos_token": True}, False, True),
        ("tekken", {"tokenizer.ggml.add_eos_token": True}, True, True),
    ],
)
def test_text_is_framed_as_the_file_says(byte_level_metadata, pre, flags, begins, ends):
    files = gguf_tokenizer_files(byte_level_metadata | {"tokenizer.ggml.pre": pre} | flags)
    tokenizer, config = Tokenizer.from_buffer(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    inner = tokenizer.encode("fox", add_special_tokens=False).ids
    assert tokenizer.encode("fox").ids == [1] * begins + inner + [2] * ends
    assert tokenizer.encode("fox", "fox").ids == ([1] * begins + inner + [2] * ends) * 2
    assert (config["add_bos_token"], config["add_eos_token"]) == (begins, ends)


def test_bos_is_not_added_when_the_file_names_none(byte_level_metadata):
    without = {key: value for key, value in byte_level_metadata.items() if "bos" not in key}
    assert build(without | {"tokenizer.ggml.pre": "llama-bpe"}).post_processor is None


def test_tokenizer_config_names_the_special_tokens_and_the_template(byte_level_metadata):
    metadata = byte_level_metadata | {"general.architecture": "llama", "llama.context_length": 512}
    config = json.loads(gguf_tokenizer_files(metadata)["tokenizer_config.json"])
    assert config["bos_token"] == "<|begin|>"
    assert config["eos_token"] == "<|end|>"
    assert config["unk_token"] == "<|endoftext|>"
    assert "pad_token" not in config
    assert config["chat_template"] == byte_level_metadata["tokenizer.chat_template"]
    assert config["model_max_length"] == 512
    assert config["clean_up_tokenization_spaces"] is False


# -- SentencePiece vocabularies


def test_sentencepiece_vocabulary_encodes_as_sentencepiece_does():
    recorded = golden("sentencepiece.json")
    tokenizer = build(recorded["metadata"])
    bos = recorded["metadata"]["tokenizer.ggml.bos_token_id"]
    for text, ids in zip(recorded["texts"], recorded["ids"], strict=True):
        assert tokenizer.encode(text).ids == [bos, *ids], text  # this kind begins with BOS unless told otherwise
        assert tokenizer.decode(ids) == text


def test_sentencepiece_special_tokens_are_never_made_by_merging():
    recorded = golden("sentencepiece.json")["metadata"]
    tokens = [*recorded["tokenizer.ggml.tokens"], "<|end|>"]
    metadata = recorded | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*recorded["tokenizer.ggml.scores"], 0.0],
        "tokenizer.ggml.token_type": [*recorded["tokenizer.ggml.token_type"], CONTROL],
    }
    tokenizer = build(metadata)
    assert tokenizer.encode("a<|end|>").ids[-1] == len(tokens) - 1
    assert "<|end|>" not in tokenizer.decode(tokenizer.encode("a<|end|>").ids)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert all("".join(merge) != "<|end|>" for merge in merges)


def test_sentencepiece_without_a_space_in_front():
    recorded = golden("sentencepiece.json")["metadata"]
    tokenizer = build(recorded | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert tokenizer.encode("the").tokens[0] != "\u2581the"
    assert tokenizer.decode(tokenizer.encode(" the").ids) == " the"


# -- files that cannot be used


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, "no tokenizer"),
        ({"tokenizer.ggml.pre": "martian"}, "'martian' is not supported"),
        ({"tokenizer.ggml.merges": ["a zzzz"]}, "inconsistent"),
        ({"tokenizer.ggml.merges": ["abc"]}, "inconsistent"),
        ({"tokenizer.ggml.merges": []}, "lacks tokenizer.ggml.merges"),
        ({"tokenizer.ggml.model": "llama"}, "no scores"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]}, "no scores"),
    ],
)
def test_damaged_vocabularies_are_refused(byte_level_metadata, changes, words):
    with pytest.raises(OccError, match=words):
        gguf_tokenizer_files(byte_level_metadata | changes)
