"""Quality of a model on text: perplexity, and divergence from a reference, by one fixed protocol."""

from .corpus import read_text
from .quality import Quality, Reference, evaluate
from .windows import Windows, cut_windows

__all__ = ["Quality", "Reference", "Windows", "cut_windows", "evaluate", "read_text"]
