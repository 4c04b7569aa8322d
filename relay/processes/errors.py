"""The error with which a program ends when it cannot start."""

from __future__ import annotations


class StartError(Exception):
    """A mistake that the operator must correct; it is shown as one line, with exit code 2."""
