"""`relay edge` and `relay agent` as programs of their own, each with its own configuration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict

import msgspec

from relay.auth.policy import Action
from relay.config import (
    AgentConfig,
    AuthenticationSettings,
    EdgeConfig,
    PolicySettings,
    RuleSettings,
    TokenSettings,
)
from tests.system.running import Program


class Admitting(TypedDict):
    """The settings of an edge that say who may do what."""

    authentication: AuthenticationSettings
    policy: PolicySettings


def admitting(tokens: Path) -> Admitting:
    """Settings that allow everything to whoever has one of these tokens."""
    everything = RuleSettings(authenticator="token", actions=list(Action))
    return {
        "authentication": AuthenticationSettings(tokens=TokenSettings(file=str(tokens))),
        "policy": PolicySettings(rules=[everything]),
    }


def log_lines(text: str) -> list[dict[str, Any]]:
    """The structured lines in a log."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


class Separate:
    """One edge or agent; ``folder`` takes its configuration and its log.

    ``prefix`` stands before the arguments of the interpreter that runs it.
    """

    def __init__(
        self,
        settings: EdgeConfig | AgentConfig,
        folder: Path,
        environ: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self._prefix = prefix
        self.log = folder / f"{self._name(settings)}.log"
        self._is_edge = isinstance(settings, EdgeConfig)
        self._environ = environ
        self._config = folder / f"{self._name(settings)}.yaml"
        self._config.write_bytes(msgspec.yaml.encode(settings))
        self._program: Program | None = None
        self.ready: dict[str, Any] = {}
        """The line that says where it listens."""

    @staticmethod
    def _name(settings: EdgeConfig | AgentConfig) -> str:
        return "edge" if isinstance(settings, EdgeConfig) else f"agent-{settings.cluster}"

    def start(self) -> Self:
        """Start it and wait until it is ready. Raises `NotRunning`."""
        program = "edge" if self._is_edge else "agent"
        argv = (*self._prefix, "-m", "relay", program, "--config", str(self._config))
        self._program = Program(argv, self.log, self._environ)
        self.ready = self._program.wait_until("its ports", self._announced)
        return self

    def _announced(self) -> dict[str, Any] | None:
        event = "edge_ready" if self._is_edge else "ready"
        lines = log_lines(self.log.read_text())
        return next((line for line in lines if line["event"] == event), None)

    @property
    def pid(self) -> int:
        """The process that was started; an edge's workers are its children."""
        assert self._program is not None
        return self._program.process.pid

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        return log_lines(self.log.read_text())

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit code."""
        assert self._program is not None
        return self._program.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
