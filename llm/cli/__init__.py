"""The ``occ`` command: a model in, a smaller file out, and the measurements between."""

from .main import main

__all__ = ["main"]
