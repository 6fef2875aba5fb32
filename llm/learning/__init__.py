"""Coordinates of a network, learned: where they live, what they minimise, and their training."""

from .placements import Placement
from .session import Outcome, Session
from .settings import LearnSettings

__all__ = ["LearnSettings", "Outcome", "Placement", "Session"]
