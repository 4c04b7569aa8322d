"""The settings that an edge's workers go by: those that their parent has read and found good.

Workers do not read the file that people edit. A worker that is replaced while somebody is at it
starts as the others did.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from relay.config import ConfigError, EdgeConfig, load
from relay.files import write_atomic

log = structlog.get_logger(__name__)

_NAME: Final = "settings.json"


class SharedConfig:
    """What the parent has accepted, and where its workers read it."""

    def __init__(self, accepted: EdgeConfig, source: Path, folder: Path) -> None:
        """``source``: the file of ``accepted``; ``folder``: the parent's. Raises ``OSError``."""
        self.accepted = accepted
        """What the workers go by."""
        self._source = source
        self.path = folder / _NAME
        self.failures = 0
        """Times that the file could not be used."""
        self._write()

    def read_again(self) -> bool:
        """Take what can change in mid-run from the file: the policy's rules. Whether there are any.

        A configuration that cannot be used changes nothing.
        """
        before = self.accepted
        try:
            read = load(EdgeConfig, self._source, os.environ)
            self.accepted = msgspec.structs.replace(before, policy=read.policy)
            self._write()
        except ConfigError as error:
            return self._refuse(*map(str, error.problems))
        except ValueError as error:  # A rule of an authenticator that a restart would bring.
            return self._refuse(f"{error}, before a restart")
        except OSError as error:
            self.accepted = before
            return self._refuse(f"the workers' copy cannot be written: {error.strerror}")
        log.info("policy_reloaded", rules=len(read.policy.rules), other_changes=self._others(read))
        return True

    def _refuse(self, *problems: str) -> bool:
        self.failures += 1
        for problem in problems:
            log.error("configuration_invalid", problem=problem)
        return False

    def _others(self, read: EdgeConfig) -> list[str]:
        """What else has changed: it takes a restart."""
        return [
            name
            for name in read.__struct_fields__
            if getattr(read, name) != getattr(self.accepted, name)
        ]

    def _write(self) -> None:
        write_atomic(self.path, msgspec.json.encode(self.accepted))


def read(path: Path) -> EdgeConfig:
    """What a worker goes by. Raises ``OSError``."""
    return msgspec.json.decode(path.read_bytes(), type=EdgeConfig)
