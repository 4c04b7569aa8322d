"""What an edge, an agent and `relay up` read when they start, and what they leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.auth.tickets import TicketSigner, TicketVerifier
from relay.auth.tokens import TokenStore
from relay.cli.checks import files
from relay.cli.checks.finding import Finding, check, error, last_resort, warning
from relay.config import AgentConfig, EdgeConfig, UpConfig

_LONG_TICKET: Final = 60.0
"""Seconds."""


@check(EdgeConfig)
def edge_certificate(config: EdgeConfig) -> Iterator[Finding]:
    """Who the edge is."""
    yield from files.pair("tls", config.tls.certificate, config.tls.key)


@check(EdgeConfig)
def upstream(config: EdgeConfig) -> Iterator[Finding]:
    """Whom it believes, and who it is to agents."""
    for name, cluster in config.clusters.items():
        if cluster.tls is None:
            continue
        section = f"clusters.{name}.tls"
        yield from files.authorities(f"{section}.ca", cluster.tls.ca)
        if cluster.tls.certificate is not None and cluster.tls.key is not None:
            yield from files.pair(section, cluster.tls.certificate, cluster.tls.key)


@check(EdgeConfig)
def ticket_key(config: EdgeConfig) -> Iterator[Finding]:
    """What tickets are signed with, and for how long they are good."""
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
            f"{config.ticket_lifetime:g} s: who reads a ticket on its way can use it that long",
        )


@check(EdgeConfig)
def tokens(config: EdgeConfig) -> Iterator[Finding]:
    """The tokens' hashes."""
    if config.authentication.tokens is not None:
        yield from _tokens("authentication.tokens.file", config.authentication.tokens.file)


@check(EdgeConfig)
def audit_log(config: EdgeConfig) -> Iterator[Finding]:
    """The audit log."""
    if config.audit.file is None:
        yield warning("audit.file", "there is no audit log")
        return
    yield from _audit(config.audit.file)


@check(UpConfig)
def up_audit_log(config: UpConfig) -> Iterator[Finding]:
    """The audit log, where it is not in the state folder."""
    if config.audit.file is not None:
        yield from _audit(config.audit.file)


@last_resort(EdgeConfig)
def edge_start(config: EdgeConfig) -> Iterator[Finding]:
    """Whatever else would keep it from starting."""
    from relay.edge.worker import Secrets
    from relay.metrics import EdgeMetrics

    try:
        Secrets.read(config, EdgeMetrics.local())
    except (OSError, ValueError) as problem:
        yield error("", f"would not start: {problem}")


@check(AgentConfig)
def agent_certificate(config: AgentConfig) -> Iterator[Finding]:
    """Who the agent is, and whom it lets in."""
    if config.tls is not None:
        yield from files.pair("tls", config.tls.certificate, config.tls.key)
        yield from files.authorities("tls.client_ca", config.tls.client_ca)


@check(AgentConfig)
def ticket_keys(config: AgentConfig) -> Iterator[Finding]:
    """Whose tickets count."""
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
    """Folders that it works in."""
    yield from _folder("state_dir", config.state_dir)
    if config.root_dir is not None and not Path(config.root_dir).is_dir():
        yield error("root_dir", f"{config.root_dir} is no folder")


@check(UpConfig)
def up_folders(config: UpConfig) -> Iterator[Finding]:
    """The same, and what is in the state folder already."""
    from relay import supervisor

    if config.root_dir is not None and not Path(config.root_dir).is_dir():
        yield error("root_dir", f"{config.root_dir} is no folder")
    place = supervisor.default_state_dir(os.environ)
    folder = supervisor.StateFolder(Path(config.state_dir) if config.state_dir else place)
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
        yield warning(path, f"{name} holds no token")


def _audit(name: str) -> Iterator[Finding]:
    from relay.auth.audit import LINE_BYTES, number

    file = Path(name)
    if not file.parent.is_dir():
        yield error("audit.file", f"there is no folder {file.parent}")
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
    if first and number(first) is None:
        yield error("audit.file", f"{name} holds something else than an audit log")


def _folder(path: str, name: str) -> Iterator[Finding]:
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        yield error(path, f"{name} is no folder")
    elif folder.is_dir() and folder.stat().st_mode & 0o077:
        yield warning(path, f"{name} is open to other users, who see what kernels print: chmod 700")
