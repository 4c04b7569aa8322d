"""Checks of `relay check-config`, beyond what every program refuses by itself.

A check is a function that takes settings and yields findings; ``@check(EdgeConfig)`` adds it. Each
file is a subject: ``across_files``, ``authn``, ``files``, ``kernels``, ``policy``, ``ports``,
``secrets`` and ``start``; ``finding`` is the register.
"""

from __future__ import annotations

from relay.cli.checks import across_files, authn, kernels, nodes, policy, ports, secrets, start
from relay.cli.checks.finding import Finding, Severity, error, findings_of, warning

__all__ = [
    "Finding",
    "Severity",
    "across_files",
    "authn",
    "error",
    "findings_of",
    "kernels",
    "nodes",
    "policy",
    "ports",
    "secrets",
    "start",
    "warning",
]
