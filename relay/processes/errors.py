"""The one error a program ends with when it cannot start."""

from __future__ import annotations


class StartError(Exception):
    """Something only the operator can put right: shown as one line, exit code 2."""
