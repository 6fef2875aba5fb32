"""Text cut into non-overlapping windows of tokens, each with the number of bytes that it predicts."""

import dataclasses

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from ..config import ModelConfig
from ..errors import OccError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Non-overlapping windows of one text.

    Attributes:
        tokens: token ids, one window per row. The first token of a window is context only: a window of ``n``
            tokens makes ``n - 1`` predictions.
        num_bytes: UTF-8 bytes of the text that the predicted tokens stand for, in all windows together.
    """

    tokens: Int[np.ndarray, "windows length"]
    num_bytes: int

    @property
    def num_predictions(self) -> int:
        """Number of predicted tokens in all windows."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)


def usual_window(config: ModelConfig) -> int:
    """Tokens of an evaluation window, unless chosen: 2048, or what the model was trained on if that is less."""
    return min(2048, config.max_position)


def check_tokens(tokens: Int[np.ndarray, "windows length"], vocab_size: int, what: str) -> None:
    """Refuse tokens that the embedding has no row for, such as added ones that are not part of the model.

    Raises:
        OccError: there are some.
    """
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise OccError(
            f"{what} has token {tokens.max()} but the model knows {vocab_size}: tokenize it with the model's own "
            "tokenizer, or take out the text of added tokens"
        )


def cut_windows(
    text: str, tokenizer: Tokenizer, *, window: int = 2048, max_windows: int | None = None, source: str = "the text"
) -> Windows:
    """Tokenise ``text`` once and cut it into windows; the remainder is dropped.

    Special tokens are added only if the model's own tokenizer does so.

    Args:
        text: any text.
        tokenizer: the model's tokenizer.
        window: tokens per window, at least 2.
        max_windows: keep the first so many, ``None`` for all.
        source: what to call the text in an error.

    Raises:
        OccError: the text is empty or shorter than one window.
    """
    if window < 2:
        raise OccError(f"a window of {window} tokens predicts nothing: choose --window 2 or more")
    if max_windows is not None and max_windows < 1:
        raise OccError(f"--max-windows {max_windows} leaves nothing to evaluate: choose 1 or more")
    if not text.strip():
        raise OccError(f"{source} is empty: give a text of at least {window} tokens")
    encoding = tokenizer.encode(text)
    count = len(encoding.ids) // window
    if count == 0:
        raise OccError(
            f"{source} has {len(encoding.ids)} tokens, less than one window of {window}: "
            "give a longer text or a smaller --window"
        )
    count = count if max_windows is None else min(count, max_windows)
    tokens = np.asarray(encoding.ids[: count * window], np.int32).reshape(count, window)
    offsets = np.asarray(encoding.offsets[: count * window]).reshape(count, window, 2)
    spans = zip(offsets[:, 0, 1], offsets[:, -1, 1], strict=True)
    return Windows(tokens=tokens, num_bytes=sum(len(text[begin:end].encode()) for begin, end in spans))
