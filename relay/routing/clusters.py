"""The names of clusters, and the paths beside them that answer without a credential."""

from __future__ import annotations

import re

from relay.routing.paths import Target

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
_PROBES = frozenset({("tree",), ("login",), ("hub", "api")})


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


def is_vscode_probe(target: Target) -> bool:
    """Tell whether ``target`` is one that VS Code asks before it shows a credential.

    404 on these means "no password, no JupyterHub" to it; 401 makes it prompt for a password
    (vscode-jupyter, jupyterPasswordConnect.ts and userServerUrlProvider.ts). The answer must not
    depend on whether the cluster exists.
    """
    return target.segments[1:] in _PROBES and _is_name(target.segments[0])


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True
