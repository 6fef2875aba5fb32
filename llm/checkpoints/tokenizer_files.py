"""The files of a tokenizer, in a directory or in memory."""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import OccError

TOKENIZER_JSON = "tokenizer.json"

TOKENIZER_FILES = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
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

    Raises:
        OccError: the file is damaged.
    """
    try:
        tokenizer = Tokenizer.from_buffer(files[TOKENIZER_JSON])
    except Exception as error:  # the tokenizers package raises plain Exception
        raise OccError(f"{source}: {TOKENIZER_JSON} is damaged ({error}); download it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Refuse a tokenizer that makes ids beyond the embedding (added tokens beyond it are never made from plain text).

    Raises:
        OccError: the tokenizer's own vocabulary is larger than the embedding.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > vocab_size:
        raise OccError(
            f"{source}: the tokenizer has {size} tokens but the embedding {vocab_size} rows; "
            "take the tokenizer that came with the model."
        )
