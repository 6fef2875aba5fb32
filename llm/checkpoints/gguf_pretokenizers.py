"""How byte-level vocabularies cut text into words, by the names that GGUF files give these rules."""

import dataclasses
from collections.abc import Mapping

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_TAIL}"
_GPT4O = rf"{_CASED % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_CASED_TAIL}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """How a byte-level vocabulary cuts text before its merges apply.

    Attributes:
        patterns: regular expressions, applied one after the other; each cuts the pieces of the one before into
            matches and the text between matches.
        ignore_merges: a word that is a token becomes that token, whatever the merges would make of it.
        add_bos: whether a file that does not say so begins every text with BOS.
        nfc: whether the text is first brought to Unicode normal form C.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2_DIGITS = PreTokenizer(patterns=(r"\p{N}", _GPT2))
_LLAMA3_BOS = PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_NFC = PreTokenizer(patterns=(_QWEN2,), nfc=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer(patterns=(_GPT2,)),
    "olmo": PreTokenizer(patterns=(_GPT2,)),
    "mpt": PreTokenizer(patterns=(_GPT2,)),
    "smollm": _GPT2_DIGITS,
    "starcoder": _GPT2_DIGITS,
    "refact": _GPT2_DIGITS,
    "command-r": _GPT2_DIGITS,
    "codeshell": _GPT2_DIGITS,
    "minerva-7b": _GPT2_DIGITS,
    "llama-bpe": _LLAMA3_BOS,
    "llama3": _LLAMA3_BOS,
    "llama-v3": _LLAMA3_BOS,
    "falcon3": _LLAMA3_BOS,
    "pixtral": _LLAMA3_BOS,
    "smaug-bpe": PreTokenizer(patterns=(_LLAMA3,)),
    "dbrx": PreTokenizer(patterns=(_LLAMA3,)),
    "qwen2": _QWEN2_NFC,
    "deepseek-r1-qwen": _QWEN2_NFC,
    "megrez": _QWEN2_NFC,
    "stablelm2": PreTokenizer(patterns=(_QWEN2,)),
    "tekken": PreTokenizer(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer(patterns=(_GPT4O,)),
    "deepseek-coder": PreTokenizer(
        patterns=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ),
}
"""``tokenizer.ggml.pre`` -> rule. The expressions are those of the tokenizers that the names stand for."""
