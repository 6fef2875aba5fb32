"""The tokenizer that the metadata of a GGUF file describes, as the files that transformers opens."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..errors import OccError
from .gguf_config import Metadata
from .gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer
from .tokenizer_files import TOKENIZER_CONFIG, TOKENIZER_JSON, frame

_logger = logging.getLogger(__name__)

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "\u2581"


def gguf_tokenizer_files(metadata: Metadata) -> dict[str, bytes]:
    """Rebuild ``tokenizer.json`` and ``tokenizer_config.json``.

    Two kinds of vocabulary exist in the Llama family: byte-level BPE (``gpt2``) and SentencePiece BPE with byte
    fallback (``llama``).

    Args:
        metadata: the file's key-value pairs.

    Raises:
        OccError: the file has no tokenizer, or one of another kind.
    """
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind is None or not metadata.get("tokenizer.ggml.tokens"):
        raise OccError("the file has no tokenizer; convert the model again with its tokenizer.")
    if kind not in builders:
        raise OccError(f"the tokenizer {kind!r} is not supported; supported are {', '.join(builders)}.")
    try:
        tokenizer = builders[kind](metadata)
        _add_special_tokens(tokenizer, metadata)
    except OccError:
        raise
    except Exception as error:  # the tokenizers package raises plain Exception
        raise OccError(f"the tokenizer's vocabulary is inconsistent ({error}); convert the model again.") from error
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or _pre_tokenizer(metadata).add_bos)
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    config = _tokenizer_config(metadata, add_bos=add_bos, add_eos=add_eos)
    frame(tokenizer, config)
    return {
        TOKENIZER_JSON: tokenizer.to_str(pretty=True).encode(),
        TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }


def _byte_level(metadata: Metadata) -> Tokenizer:
    """Byte-level BPE: text is cut into words, words are spelled in 256 letters for the bytes, then merged."""
    rule = _pre_tokenizer(metadata)
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    if not merges:
        raise OccError("the metadata lacks tokenizer.ggml.merges, which cut text into tokens; convert the model again.")
    tokenizer = Tokenizer(BPE(_vocabulary(metadata), merges, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Metadata) -> Tokenizer:
    """SentencePiece BPE: spaces become a letter, the pair whose union scores best merges first."""
    vocab = _vocabulary(metadata)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    model = BPE(
        vocab,
        _merges_from_scores(metadata, vocab),
        unk_token=None if unknown is None else metadata["tokenizer.ggml.tokens"][unknown],
        fuse_unk=True,
        byte_fallback="<0x00>" in vocab,
    )
    tokenizer = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace] if prefix else [replace])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_from_scores(metadata: Metadata, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to put a normal piece together from two others, best piece first, longest left part first."""
    scores, types = metadata.get("tokenizer.ggml.scores"), metadata.get("tokenizer.ggml.token_type")
    if scores is None or len(scores) < len(vocab):
        raise OccError("the tokenizer has no scores for its pieces; convert the model again.")
    normal = vocab if types is None else {t: i for t, i in vocab.items() if types[i] == gguf.TokenType.NORMAL}
    splits = (
        (-scores[index], -cut, normal[piece[:cut]], normal[piece[cut:]], piece[:cut], piece[cut:])
        for piece, index in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    return [(left, right) for *_, left, right in sorted(splits)]


def _vocabulary(metadata: Metadata) -> dict[str, int]:
    """Piece -> id, without the rows at the end that only pad the embedding."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    used = len(tokens)
    while types is not None and used and types[used - 1] == gguf.TokenType.UNUSED:
        used -= 1
    return {token: index for index, token in enumerate(tokens[:used])}


def _add_special_tokens(tokenizer: Tokenizer, metadata: Metadata) -> None:
    """Control tokens (also the unknown one) are special; user-defined ones are merely never cut."""
    special = {gguf.TokenType.CONTROL: True, gguf.TokenType.UNKNOWN: True, gguf.TokenType.USER_DEFINED: False}
    types = metadata.get("tokenizer.ggml.token_type", ())
    added = [
        AddedToken(token, normalized=False, special=special[kind])
        for token, kind in zip(metadata["tokenizer.ggml.tokens"], types, strict=False)
        if kind in special and token
    ]
    if added:
        tokenizer.add_tokens(added)


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        _logger.warning("the GGUF file does not say how to cut text into words (tokenizer.ggml.pre): using 'default'")
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise OccError(
            f"the pre-tokenizer {name!r} is not supported; give the Hugging Face directory of the model instead, "
            f"or a file with one of {', '.join(PRE_TOKENIZERS)}."
        )
    return PRE_TOKENIZERS[name]


def _tokenizer_config(metadata: Metadata, *, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in _SPECIAL.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and index < len(tokens):
            config[name] = tokens[index]
    config["add_bos_token"] = bool(add_bos and "bos_token" in config)
    config["add_eos_token"] = bool(add_eos and "eos_token" in config)
    arch = metadata.get("general.architecture")
    if (length := metadata.get(f"{arch}.context_length")) is not None:
        config["model_max_length"] = length
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return config
