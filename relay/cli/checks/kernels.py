"""What kernels may reach, and what clients may put into them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from relay.cli.checks.finding import Finding, check, warning
from relay.config import AgentConfig, UpConfig

_DECISIVE: Final = re.compile(
    r"PATH|(LD|PYTHON|JPY|BASH|PERL|RUBY|NODE|GIT|R|JULIA|JUPYTER|IPYTHON)_?.*"
    r"|ENV|IFS|SHELL|HOME|TMPDIR|GCONV_PATH|NLSPATH|LOCPATH|SSL_CERT_(FILE|DIR)"
)
"""Names of variables that decide which code runs, or whom it believes."""


@check(AgentConfig, UpConfig)
def environment(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Variables that clients may set."""
    for number, name in enumerate(config.environment.allowed):
        if _DECISIVE.fullmatch(name):
            yield warning(
                f"environment.allowed.{number}",
                f"whoever sets {name} decides which code runs, before and beside the kernel's own",
            )


@check(AgentConfig, UpConfig)
def free_parameters(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Text of clients in kernels' command lines."""
    if config.kernels.allow_free_parameters:
        yield warning(
            "kernels.allow_free_parameters",
            "clients put any text into the command lines of kernelspecs with parameters; their"
            " schemas are all that stands between",
        )


@check(AgentConfig, UpConfig)
def shared_user(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Kernels of several people under one user id."""
    if config.shared_uid and getattr(config, "launch_as", None) is None:
        yield warning(
            "shared_uid",
            "no isolation between users: all kernels run as one OS user, so any of them reads the"
            " others' files and the relay's own",
        )
