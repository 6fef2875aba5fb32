"""Quality of a model on text: perplexity, and divergence from a reference, by one fixed protocol."""

from .corpus import cut_lines, read_file, read_text
from .quality import Quality, Reference, evaluate
from .windows import Windows, check_tokens, cut_windows, usual_window

__all__ = [
    "Quality",
    "Reference",
    "Windows",
    "check_tokens",
    "cut_lines",
    "cut_windows",
    "evaluate",
    "read_file",
    "read_text",
    "usual_window",
]
