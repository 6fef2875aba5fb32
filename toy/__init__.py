"""A laboratory of functions that we understand: one function, many bases, and what each costs to write down."""

from .bases import BASES, Basis
from .experiment import Protocol, Results, run_experiment
from .sources import SOURCES, Source

__all__ = ["BASES", "SOURCES", "Basis", "Protocol", "Results", "Source", "run_experiment"]
