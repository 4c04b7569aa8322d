"""An edge and an agent that fit together, with all their files, and nothing wrong with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay import pki
from relay.auth.tokens import TokenStore, generate
from relay.cli.checks import Finding, findings_of
from relay.config import AgentConfig, EdgeConfig, UpConfig, load

Found = list[tuple[str, str]]
"""Severity and setting of each finding."""


class Place:
    """A folder of files, and the two configurations as plain values, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = time.time()
        self.authority = pki.new_authority(now)
        self.write_pair("edge", pki.new_server(self.authority, ["localhost"], now))
        self.write_pair("agent", pki.new_server(self.authority, ["localhost"], now))
        self.write("ca.pem", self.authority.public)
        keys = pki.new_ticket_keys()
        self.write("ticket.pub", keys.public)
        self.write("ticket.key", keys.private)
        _, record = generate("alice", now)
        self.write("tokens.json", TokenStore([record]).dump())
        (folder / "state").mkdir(mode=0o700)
        self.edge: dict[str, Any] = {
            "https": {"port": 0},
            "wss": {"port": 0},
            "tls": {"certificate": "edge.pem", "key": "edge.key"},
            "clusters": {"alpha": {"agents": ["http://127.0.0.1:8451"]}},
            "authentication": {"tokens": {"file": "tokens.json"}},
            "policy": {"rules": [{"authenticator": "token", "actions": ["list"]}]},
            "ticket_key": "ticket.key",
            "audit": {"file": "audit.log"},
        }
        self.agent: dict[str, Any] = {
            "cluster": "alpha",
            "listen": {"port": 8451},
            "state_dir": "state",
            "ticket_keys": ["ticket.pub"],
        }
        self.up: dict[str, Any] = {
            "state_dir": "state",
            "https": {"port": 0},
            "wss": {"port": 0},
        }

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def write_pair(self, name: str, pair: pki.PemPair) -> None:
        self.write(f"{name}.pem", pair.public)
        self.write(f"{name}.key", pair.private)

    def with_tls(self) -> None:
        """Have the two speak mutual TLS."""
        self.edge["clusters"]["alpha"] = {
            "agents": ["https://127.0.0.1:8451"],
            "tls": {"ca": "ca.pem", "certificate": "edge.pem", "key": "edge.key"},
        }
        self.agent["tls"] = {
            "certificate": "agent.pem",
            "key": "agent.key",
            "client_ca": "ca.pem",
        }

    def with_os_users(self) -> None:
        """Have the agent launch kernels as other OS users."""
        self.agent |= {"user": "relay", "launch_as": {}, "runtime_dir": "run"}

    def file(self, kind: str) -> Path:
        """The configuration of this kind, as a file."""
        plain = json.loads(json.dumps(getattr(self, kind)))  # without anything twice, or an alias
        return self.write(f"{kind}.yaml", yaml.safe_dump(plain).encode())

    def edge_config(self) -> EdgeConfig:
        return load(EdgeConfig, self.file("edge"), {})

    def agent_config(self) -> AgentConfig:
        return load(AgentConfig, self.file("agent"), {})

    def up_config(self) -> UpConfig:
        return load(UpConfig, self.file("up"), {})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def look() -> Callable[..., Found]:
    """What is found about settings, but for what is said of all agents."""

    def find(settings: EdgeConfig | AgentConfig | UpConfig | list[Finding]) -> Found:
        findings = settings if isinstance(settings, list) else findings_of(settings)
        return [(each.severity, each.path) for each in findings if each.path]

    return find
