"""What `relay check-config` looks for, beyond what every program refuses by itself.

A check is a function that takes settings and yields findings; ``@check(EdgeConfig)`` is all it
takes to add one. Each file here is a subject.
"""

from __future__ import annotations

from relay.cli.checks import across_files, authn, kernels, policy, ports, secrets, start
from relay.cli.checks.finding import Finding, Severity, error, findings_of, warning

__all__ = [
    "Finding",
    "Severity",
    "across_files",
    "authn",
    "error",
    "findings_of",
    "kernels",
    "policy",
    "ports",
    "secrets",
    "start",
    "warning",
]
