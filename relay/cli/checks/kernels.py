"""Checks of kernels' environment, command lines and OS users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from relay.cli.checks.finding import Finding, check, warning
from relay.config import AgentConfig, UpConfig

_DECIDES_CODE: Final = re.compile(
    r"PATH|(LD|PYTHON|JPY|BASH|PERL|RUBY|NODE|GIT|R|JULIA|JUPYTER|IPYTHON)_?.*"
    r"|ENV|IFS|SHELL|HOME|TMPDIR|GCONV_PATH|NLSPATH|LOCPATH|SSL_CERT_(FILE|DIR)"
)
"""Names of variables that decide which code runs, or which servers it trusts."""


@check(AgentConfig, UpConfig)
def environment(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Warn of variables that let clients decide which code runs."""
    for number, name in enumerate(config.environment.allowed):
        if _DECIDES_CODE.fullmatch(name):
            yield warning(
                f"environment.allowed.{number}",
                f"a client that sets {name} decides which code runs, in and beside the kernel",
            )


@check(AgentConfig, UpConfig)
def free_parameters(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Warn of clients' text in kernels' command lines."""
    if config.kernels.allow_free_parameters:
        yield warning(
            "kernels.allow_free_parameters",
            "clients can put any text into the command lines of kernelspecs with parameters; only"
            " the kernelspecs' schemas limit it",
        )


@check(AgentConfig, UpConfig)
def shared_user(config: AgentConfig | UpConfig) -> Iterator[Finding]:
    """Warn of kernels of several users that run as one OS user."""
    if config.shared_uid and getattr(config, "launch_as", None) is None:
        yield warning(
            "shared_uid",
            "users are not isolated: all kernels run as one OS user, so each can read the others'"
            " files and the relay's own",
        )
