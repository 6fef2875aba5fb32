"""A real model in several coordinate systems: what changes, what stays, and which claims survive a test."""

from .findings import Finding, decide
from .page import render_page
from .run import Analysis, Facts, analyze
from .subject import Subject, open_subject

__all__ = ["Analysis", "Facts", "Finding", "Subject", "analyze", "decide", "open_subject", "render_page"]
