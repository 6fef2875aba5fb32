"""Evaluation text by name or by file."""

from pathlib import Path

from ..errors import OccError
from ..hub_text import wikitext2_test

WIKITEXT2 = "wikitext2"
"""Name of the raw WikiText-2 test split."""


def cut_lines(text: str, share: float) -> tuple[str, str]:
    """The first lines of a text, a given share of them, and the others.

    Example:
        >>> cut_lines("a\\nb\\nc\\n", 0.7)
        ('a\\nb\\n', 'c\\n')
    """
    lines = text.splitlines(keepends=True)
    cut = int(share * len(lines))
    return "".join(lines[:cut]), "".join(lines[cut:])


def read_text(source: str) -> str:
    """Text to evaluate on: of a UTF-8 file, or the WikiText-2 test split from the hub.

    Raises:
        OccError: no such file, a file that is not text, or no way to the hub.
    """
    if source == WIKITEXT2:
        return wikitext2_test()
    return read_file(Path(source), f", or {WIKITEXT2!r} for its test split")


def read_file(path: Path, otherwise: str = "") -> str:
    """Text of a UTF-8 file. Calibration takes no other: a published test split is for evaluation.

    Args:
        path: the file.
        otherwise: what else could be given in its place.

    Raises:
        OccError: no such file, or a file that is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OccError(f"{path}: no such file; give a text file{otherwise}") from None
    except IsADirectoryError:
        raise OccError(f"{path} is a directory; give a text file") from None
    except UnicodeDecodeError as error:
        raise OccError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
