"""Quality of a model on text: perplexity, and divergence from a reference, by one fixed protocol."""

from .corpus import cut_lines, read_text
from .quality import Quality, Reference, evaluate
from .windows import Windows, cut_windows, usual_window

__all__ = ["Quality", "Reference", "Windows", "cut_lines", "cut_windows", "evaluate", "read_text", "usual_window"]
