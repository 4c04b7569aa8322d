"""Checks of the files and folders that programs use at their start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.auth.tickets import TicketSigner, TicketVerifier
from relay.auth.tokens import TokenStore
from relay.cli.checks import files
from relay.cli.checks.finding import Finding, check, error, final_check, warning
from relay.config import AgentConfig, EdgeConfig, UpConfig

_LONG_TICKET: Final = 60.0
"""Seconds."""


@check(EdgeConfig)
def edge_certificate(config: EdgeConfig) -> Iterator[Finding]:
    """Check the edge's certificate."""
    yield from files.pair("tls", config.tls.certificate, config.tls.key)


@check(EdgeConfig)
def upstream(config: EdgeConfig) -> Iterator[Finding]:
    """Check the certificates for connections to agents."""
    for name, cluster in config.clusters.items():
        if cluster.tls is None:
            continue
        section = f"clusters.{name}.tls"
        yield from files.authorities(f"{section}.ca", cluster.tls.ca)
        if cluster.tls.certificate is not None and cluster.tls.key is not None:
            yield from files.pair(section, cluster.tls.certificate, cluster.tls.key)


@check(EdgeConfig)
def ticket_key(config: EdgeConfig) -> Iterator[Finding]:
    """Check the key that signs tickets, and their lifetime."""
    data, findings = files.read("ticket_key", config.ticket_key)
    yield from findings
    if not findings:
        try:
            TicketSigner(data)
        except ValueError as problem:
            yield error("ticket_key", f"{config.ticket_key}: {problem}")
    if config.ticket_lifetime > _LONG_TICKET:
        yield warning(
            "ticket_lifetime",
            f"{config.ticket_lifetime:g} s: an intercepted ticket can be used for that long",
        )


@check(EdgeConfig)
def tokens(config: EdgeConfig) -> Iterator[Finding]:
    """Check the token file."""
    if config.authentication.tokens is not None:
        yield from _tokens("authentication.tokens.file", config.authentication.tokens.file)


@check(EdgeConfig)
def audit_log(config: EdgeConfig) -> Iterator[Finding]:
    """Check the audit log."""
    if config.audit.file is None:
        yield warning("audit.file", "there is no audit log")
        return
    yield from _audit(config.audit.file)


@check(UpConfig)
def up_audit_log(config: UpConfig) -> Iterator[Finding]:
    """Check the audit log, where it is not in the state directory."""
    if config.audit.file is not None:
        yield from _audit(config.audit.file)


@final_check(EdgeConfig)
def edge_start(config: EdgeConfig) -> Iterator[Finding]:
    """Find what else would keep an edge from starting."""
    from relay.edge.worker import Secrets
    from relay.metrics import EdgeMetrics

    try:
        Secrets.read(config, EdgeMetrics.local())
    except (OSError, ValueError) as problem:
        yield error("", f"it would not start: {problem}")


@check(AgentConfig)
def agent_certificate(config: AgentConfig) -> Iterator[Finding]:
    """Check the agent's certificate, and the CA of its clients."""
    if config.tls is not None:
        yield from files.pair("tls", config.tls.certificate, config.tls.key)
        yield from files.authorities("tls.client_ca", config.tls.client_ca)


@check(AgentConfig)
def ticket_keys(config: AgentConfig) -> Iterator[Finding]:
    """Check the public keys of edges."""
    for number, name in enumerate(config.ticket_keys):
        path = f"ticket_keys.{number}"
        data, findings = files.read(path, name)
        yield from findings
        if not findings:
            try:
                TicketVerifier([data], config.cluster)
            except ValueError as problem:
                yield error(path, f"{name}: {problem}")


@check(AgentConfig)
def agent_folders(config: AgentConfig) -> Iterator[Finding]:
    """Check the agent's directories."""
    yield from _folder("state_dir", config.state_dir)
    if config.root_dir is not None and not Path(config.root_dir).is_dir():
        yield error("root_dir", f"{config.root_dir} is not a directory")


@check(UpConfig)
def up_folders(config: UpConfig) -> Iterator[Finding]:
    """Check the directories, and the tokens in the state directory."""
    from relay import supervisor

    if config.root_dir is not None and not Path(config.root_dir).is_dir():
        yield error("root_dir", f"{config.root_dir} is not a directory")
    default = supervisor.default_state_dir(os.environ)
    folder = supervisor.StateFolder(Path(config.state_dir) if config.state_dir else default)
    yield from _folder("state_dir", str(folder.path))
    if folder.tokens.exists():
        yield from _tokens("state_dir", str(folder.tokens))
        yield from files.secret("state_dir", str(folder.tokens))


def _tokens(path: str, name: str) -> Iterator[Finding]:
    data, findings = files.read(path, name)
    yield from findings
    if findings:
        return
    try:
        store = TokenStore.parse(data)
    except ValueError as problem:
        yield error(path, f"{name} is damaged: {problem}")
        return
    if not store.records:
        yield warning(path, f"{name} holds no tokens")


def _audit(name: str) -> Iterator[Finding]:
    from relay.auth.audit import LINE_BYTES, line_number

    file = Path(name)
    if not file.parent.is_dir():
        yield error("audit.file", f"there is no directory {file.parent}")
        return
    if not file.exists():
        return
    if not file.is_file():
        yield error("audit.file", f"{name} is not a regular file")
        return
    try:
        with file.open("rb") as opened:
            first = opened.readline(LINE_BYTES)
    except OSError as problem:
        yield error("audit.file", f"{name}: {problem.strerror}")
        return
    if first and line_number(first) is None:
        yield error("audit.file", f"{name} is not an audit log")


def _folder(path: str, name: str) -> Iterator[Finding]:
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        yield error(path, f"{name} is not a directory")
    elif folder.is_dir() and folder.stat().st_mode & 0o077:
        yield warning(path, f"other users can read kernels' output in {name}: chmod 700")
