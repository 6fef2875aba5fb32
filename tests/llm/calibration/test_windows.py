"""Which text is calibrated on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from occ_llm.calibration.text import calibration_windows, spread
from occ_llm.errors import OccError
from occ_llm.text import python_text
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_windows_spread_over_the_whole_text(tokenizer):
    text = "".join(chr(ord("a") + i) * 10 for i in range(10))
    windows = calibration_windows(tokenizer, text=text, window=10, max_windows=5)
    assert windows.shape == (5, 10)
    assert [tokenizer.id_to_token(int(row[0])) for row in windows] == list("acegi")
    assert (windows == windows[:, :1]).all()


def test_short_text_is_used_whole(tokenizer):
    assert calibration_windows(tokenizer, text="abcdefg", window=3).shape == (2, 3)


def test_text_shorter_than_a_window_is_refused(tokenizer):
    with pytest.raises(OccError, match=r"notes\.txt has 7 tokens, less than one window of 8"):
        calibration_windows(tokenizer, text="abcdefg", window=8, source="notes.txt")
    with pytest.raises(OccError, match=r"notes\.txt is empty"):
        calibration_windows(tokenizer, text=" \n", source="notes.txt")


def test_without_a_text_it_is_the_documentation_of_python(tokenizer):
    windows = calibration_windows(tokenizer)
    assert windows.shape == (32, 1024)
    text = "".join(tokenizer.id_to_token(int(token)) for token in windows[0])
    assert text.replace("Ġ", " ").replace("Ċ", "\n") in python_text("calibration")


@given(st.integers(1, 1000), st.integers(1, 100))
def test_spread_is_even(count, most):
    rows = spread(count, most)
    assert len(rows) == min(count, most)
    assert rows[0] == 0
    assert rows[-1] < count
    gaps = np.diff([*rows, count])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
