"""A laboratory of functions that we understand: one function, many bases, and what each costs to write down.

The names below are imported when they are first asked for: ``occ`` looks at its subcommands at every start, and should
not wait for a laboratory that nobody opens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bases import BASES, Basis
    from .experiment import Protocol, Results, run_experiment
    from .sources import SOURCES, Source

_PLACES = {
    "BASES": "bases",
    "Basis": "bases",
    "Protocol": "experiment",
    "Results": "experiment",
    "SOURCES": "sources",
    "Source": "sources",
    "run_experiment": "experiment",
}

__all__ = ["BASES", "SOURCES", "Basis", "Protocol", "Results", "Source", "run_experiment"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
