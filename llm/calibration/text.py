"""Text to calibrate on, cut into windows."""

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from ..evaluation.windows import cut_windows
from ..text import python_text

WINDOW = 1024
"""Tokens in a window of calibration text."""

MAX_WINDOWS = 32
"""Windows that are used of a longer text."""


def calibration_windows(
    tokenizer: Tokenizer,
    *,
    text: str | None = None,
    window: int = WINDOW,
    max_windows: int = MAX_WINDOWS,
    source: str = "the calibration text",
) -> Int[np.ndarray, "windows length"]:
    """Windows spread evenly over a text, for all of what it is about has to be seen.

    Args:
        tokenizer: the model's tokenizer.
        text: any text; ``None`` for the documentation that every Python carries
            (:func:`occ_llm.text.python_text`, the part called ``calibration``).
        window: tokens per window.
        max_windows: how many windows to take, if the text has as many.
        source: what to call the text in an error.

    Raises:
        OccError: the text is empty or shorter than one window.
    """
    text = python_text("calibration") if text is None else text
    tokens = cut_windows(text, tokenizer, window=window, source=source).tokens
    return tokens[spread(len(tokens), max_windows)]


def spread(count: int, most: int) -> Int[np.ndarray, " chosen"]:
    """At most so many of ``count`` things at equal distances, the first one included.

    Example:
        >>> print(spread(10, 4), spread(3, 4))
        [0 2 5 7] [0 1 2]
    """
    chosen = min(count, most)
    return np.arange(chosen) * count // max(chosen, 1)
