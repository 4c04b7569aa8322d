"""The names that clusters may have."""

from __future__ import annotations

import re

RESERVED = frozenset(
    {
        "t",
        "api",
        "kernelspecs",
        "metrics",
        "healthz",
        "readyz",
        "sd",
        "status",
        "hub",
        "login",
        "tree",
        "services",
        "openapi",
    }
)
"""First path segments that are, or will be, something else than a cluster."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def check_name(name: str) -> None:
    """Raise ``ValueError``, saying why, when no cluster can be called ``name``."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            "a cluster's name is 1 to 31 of a-z, 0-9 and '-', and begins with a letter"
        )
    if "http" in name:
        # Jupyter's gateway client makes ws_url by replacing every "http" in the whole URL.
        raise ValueError("a cluster's name does not contain 'http'")
    if name in RESERVED:
        raise ValueError(f"the name '{name}' is reserved")


def is_cluster_name(name: str) -> bool:
    """Tell whether a cluster can be called ``name``."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True
