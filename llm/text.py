"""Text that every Python carries: its reference manual and the documentation of its standard library.

It needs no download, its licence is that of Python (PSF-2.0), and it is the same for everybody with the same Python
version. The bundled model ``tiny`` is trained on it; calibration and the demo use it when no text is given.
"""

import ast
import hashlib
import importlib
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from .errors import OccError

Split = Literal["train", "calibration", "heldout"]

_SKIPPED = {
    "__phello__",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_LONG_ENOUGH = 200  # characters; what is shorter says little ("Wrapper module for ...")


def python_text(split: Split) -> str:
    """Return one part of the text; the parts share no document.

    Args:
        split: ``train`` (80 % of the documents), ``calibration`` (10 %) or ``heldout`` (10 %). What ``tiny`` was
            trained on is ``train`` only.

    Raises:
        OccError: if this Python was installed without its library sources and topics.

    Example:
        >>> len(python_text("train")) > 4 * len(python_text("heldout")) > 100_000
        True
    """
    return "\n\n\n".join(python_documents(split).values())


def python_documents(split: Split) -> dict[str, str]:
    """Return the documents of one part by name, in alphabetical order.

    A document is a topic of the reference manual or all docstrings of one module. A hash of its name puts it in its
    part; the modules of a package, which say many things in the same words, stay together.
    """
    documents = {f"topic {name}": text for name, text in _topics().items() if _part_of(f"topic {name}") == split}
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).with_suffix("")
        if not _SKIPPED.intersection(path.parts) and _part_of(f"module {path.parts[0]}") == split:
            documents[f"module {path.as_posix()}"] = "\n\n".join(dict.fromkeys(_docstrings_of(file)))
    documents = {name: text for name, text in sorted(documents.items()) if len(text) >= _LONG_ENOUGH}
    if not documents:
        raise OccError("this Python has neither its manual topics nor its library sources; give a text file instead.")
    return documents


def _part_of(name: str) -> Split:
    place = hashlib.sha256(name.encode()).digest()[0] % 10
    return "heldout" if place == 0 else "calibration" if place == 1 else "train"


def _topics() -> Mapping[str, str]:
    """Sections of the reference manual, as ``help('topics')`` shows them."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return {}
    return {name: text.strip() for name, text in topics.items()}


def _docstrings_of(file: Path) -> Iterator[str]:
    """Docstrings of a module, from its source: nothing is imported."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 20:
                yield text.strip()
