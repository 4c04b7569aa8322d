"""The form of names that stand in paths: kernel ids and kernelspecs' names."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME: Final = 128
"""Longest kernelspec name, in characters."""

_MAX_KERNEL_ID: Final = 64
_KERNEL_ID: Final = re.compile(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+){4}")
_SPEC_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


def is_kernel_id(text: str) -> bool:
    r"""Tell whether ``text`` can be a kernel id: five ASCII ``\w+`` joined by hyphens, at most 64.

    Jupyter Server's own pattern, bounded; UUIDs are the usual case.
    """
    return len(text) <= _MAX_KERNEL_ID and _KERNEL_ID.fullmatch(text) is not None


def is_kernelspec_name(text: str) -> bool:
    """Tell whether ``text`` can name a kernelspec (jupyter_client's pattern, bounded)."""
    return (
        len(text) <= MAX_NAME and _SPEC_NAME.fullmatch(text) is not None and text.strip(".") != ""
    )
