"""The evaluation protocol against its definition, computed the long way in NumPy."""

import jax
import numpy as np
import pytest
from occ_llm.errors import OccError
from occ_llm.evaluation import Reference, cut_windows, evaluate, read_text
from occ_llm.model import LanguageModel


@pytest.fixture(scope="module")
def model(toy):
    return LanguageModel.from_weights(toy.config, toy.weights)


@pytest.fixture(scope="module")
def other(toy):
    return LanguageModel.random(toy.config, key=jax.random.key(9))


def log_probabilities(model, tokens):
    logits = np.asarray(model(tokens), np.float64)[:, :-1]
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_every_quantity_against_its_definition(toy, model, other):
    windows = cut_windows("The quick brown fox. " * 30, toy.tokenizer, window=100)
    assert windows.tokens.shape == (6, 100)
    quality = evaluate(other, windows, reference=Reference(model))
    log_p, log_q = log_probabilities(model, windows.tokens), log_probabilities(other, windows.tokens)
    nll = -np.take_along_axis(log_q, windows.tokens[:, 1:, None], -1)[..., 0]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert quality.nll == pytest.approx(nll.mean(), rel=1e-5)
    assert quality.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert quality.bits_per_byte == pytest.approx(nll.sum() / np.log(2) / (6 * 99), rel=1e-5)  # one byte a token
    assert quality.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert quality.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert quality.kl_se == pytest.approx(kl.mean(1).std(ddof=1) / np.sqrt(6), rel=1e-3)
    assert quality.top1_agreement == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).mean(), abs=0.01)
    assert (quality.windows, quality.tokens) == (6, 6 * 99)


def test_a_model_agrees_with_itself(toy, model, toy_tokens):
    windows = cut_windows("abc" * 100, toy.tokenizer, window=150)
    quality = evaluate(model, windows, reference=Reference(model, keep=False))
    assert quality.kl_mean == pytest.approx(0, abs=1e-6)
    assert quality.top1_agreement == 1


def test_without_a_reference_only_the_likelihood_is_measured(toy, model):
    windows = cut_windows("hello world, " * 20, toy.tokenizer, window=64, max_windows=2)
    alone, compared = evaluate(model, windows), evaluate(model, windows, reference=Reference(model))
    assert alone.nll == pytest.approx(compared.nll, rel=1e-6)
    assert (alone.kl_mean, alone.kl_p99, alone.kl_se, alone.top1_agreement) == (None,) * 4


def test_a_reference_remembers_its_states(toy, model):
    reference = Reference(model)
    tokens = np.arange(40, dtype=np.int32)
    first = reference.hidden(tokens[None])
    np.testing.assert_array_equal(reference.hidden(tokens[None].copy()), first)
    np.testing.assert_array_equal(first, model.hidden_states(tokens[None]))


def test_devices_share_the_windows(toy, model, other, monkeypatch):
    windows = cut_windows("many hands make light work. " * 30, toy.tokenizer, window=90, max_windows=5)
    shared = evaluate(other, windows, reference=Reference(model))
    alone = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: alone)
    single = evaluate(other, windows, reference=Reference(model))
    for name in ("nll", "kl_mean", "kl_p99", "kl_se", "top1_agreement"):
        assert getattr(shared, name) == pytest.approx(getattr(single, name), rel=1e-5)


def test_one_window_has_an_error_over_tokens(toy, model, other):
    windows = cut_windows("x" * 80, toy.tokenizer, window=80)
    assert evaluate(other, windows, reference=Reference(model)).kl_se > 0


def test_windows_do_not_overlap_and_the_remainder_is_dropped(toy):
    text = "".join(chr(97 + i % 26) for i in range(107))
    windows = cut_windows(text, toy.tokenizer, window=25)
    ids = toy.tokenizer.encode(text).ids
    np.testing.assert_array_equal(windows.tokens.ravel(), ids[:100])
    assert windows.num_predictions == 4 * 24
    assert windows.num_bytes == 4 * 24


def test_bytes_are_counted_in_utf8(toy):
    windows = cut_windows("가나다라마바사아자차", toy.tokenizer, window=30)
    assert windows.tokens.shape == (1, 30)
    assert 24 <= windows.num_bytes <= 30


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the book is empty"),
        ("  \n ", {}, "the book is empty"),
        ("short", {}, "5 tokens, less than one window of 2048"),
        ("long enough", {"window": 1}, "predicts nothing"),
        ("long enough", {"window": 4, "max_windows": 0}, "leaves nothing"),
    ],
)
def test_text_that_cannot_be_evaluated(toy, text, options, message):
    with pytest.raises(OccError, match=message):
        cut_windows(text, toy.tokenizer, source="the book", **options)


def test_tokens_without_a_row_in_the_embedding_are_refused(toy, model):
    windows = cut_windows("abc" * 40, toy.tokenizer, window=20)
    windows.tokens[1, 3] = toy.config.vocab_size
    with pytest.raises(OccError, match=f"token {toy.config.vocab_size} but the model knows {toy.config.vocab_size}"):
        evaluate(model, windows)


def test_read_text(tmp_path):
    (tmp_path / "a.txt").write_text("좌표", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt")) == "좌표"
    with pytest.raises(OccError, match="no such file"):
        read_text(str(tmp_path / "b.txt"))
    with pytest.raises(OccError, match="is a directory"):
        read_text(str(tmp_path))
    (tmp_path / "c.bin").write_bytes(b"ab\xff\xfe")
    with pytest.raises(OccError, match="not UTF-8 text \\(byte 2\\)"):
        read_text(str(tmp_path / "c.bin"))
