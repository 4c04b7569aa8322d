"""Settings files of an agent and an edge, and the mistakes that are found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import AgentConfig, ConfigError, EdgeConfig, load

AGENT = """\
cluster: alpha
listen: {port: 8451}
state_dir: state
ticket_keys: [a.pem]
"""
AUTHENTICATION = "authentication: {tokens: {file: tokens.json}}\n"
EDGE = """\
tls: {certificate: a.crt, key: a.key}
clusters: {alpha: {agents: ["http://127.0.0.1:1"]}}
authentication: {tokens: {file: tokens.json}}
ticket_key: ticket.key
"""
NAME = "a cluster's name is 1 to 31 of a-z, 0-9 and '-', and begins with a letter"


def agent(file: Path, text: str, env: dict[str, str] | None = None) -> AgentConfig:
    file.write_text(text)
    return load(AgentConfig, file, env or {})


def edge(file: Path, text: str, env: dict[str, str] | None = None) -> EdgeConfig:
    file.write_text(text)
    return load(EdgeConfig, file, env or {})


def problems(error: pytest.ExceptionInfo[ConfigError], file: Path) -> list[str]:
    return str(error.value).replace(str(file), "FILE").splitlines()
