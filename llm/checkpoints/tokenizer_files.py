"""The files of a tokenizer, in a directory or in memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from ..errors import OccError

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

_FRAMING = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes of transformers that frame texts by their config, whatever ``tokenizer.json`` says."""

TOKENIZER_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""What a copy of a model needs beside its config and weights (of these, whatever the source has)."""


def read_tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Read the files of ``directory`` that belong to the tokenizer.

    Raises:
        OccError: there is no ``tokenizer.json``.
    """
    if not (directory / TOKENIZER_JSON).is_file():
        raise OccError(
            f"{directory}: no {TOKENIZER_JSON}; write one with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    return {name: (directory / name).read_bytes() for name in TOKENIZER_FILES if (directory / name).is_file()}


def load_tokenizer(files: Mapping[str, bytes], source: str) -> Tokenizer:
    """Open ``tokenizer.json``, without the truncation and padding that some models ship (text is never cut).

    Some models say in their config alone that texts begin with a special token.

    Raises:
        OccError: a file is damaged.
    """
    try:
        tokenizer = Tokenizer.from_buffer(files[TOKENIZER_JSON])
    except Exception as error:  # the tokenizers package raises plain Exception
        raise OccError(f"{source}: {TOKENIZER_JSON} is damaged ({error}); download it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _config(files, source)
    if config.get("tokenizer_class") in _FRAMING and not tokenizer.encode("").ids:
        frame(tokenizer, config)
    return tokenizer


def frame(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Begin and end every text with BOS and EOS where a tokenizer's config wants them."""
    bos, eos = (_token(config, end) for end in ("bos", "eos"))
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*bos, *eos}],
        )


def _token(config: Mapping[str, Any], end: str) -> list[str]:
    """The special token at one end, if it is asked for."""
    token = config.get(f"{end}_token") if config.get(f"add_{end}_token") else None
    token = token.get("content") if isinstance(token, Mapping) else token
    return [token] if isinstance(token, str) else []


def _config(files: Mapping[str, bytes], source: str) -> dict[str, Any]:
    try:
        config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
    except ValueError as error:
        raise OccError(f"{source}: {TOKENIZER_CONFIG} is damaged ({error}); download it again.") from error
    return config if isinstance(config, dict) else {}


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Refuse a tokenizer that makes ids beyond the embedding (added tokens beyond it are refused in the text that
    makes them).

    Raises:
        OccError: the tokenizer's own vocabulary is larger than the embedding.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > vocab_size:
        raise OccError(
            f"{source}: the tokenizer has {size} tokens but the embedding {vocab_size} rows; "
            "take the tokenizer that came with the model."
        )
