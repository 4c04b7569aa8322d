"""Versions of formats that outlive a process, or that two processes exchange.

A holder runs for as long as its kernel, while newer agents may be installed. Each of these formats
therefore has a version, which a reader checks before it reads anything else:

- Records: ``version`` in ATTACH, CALL and READ, which open a connection, in their answers
  (ATTACHED, STATUS, READING), and in a CLOSE that refuses them (``openings.py``).
- Folder: ``version`` in ``request.json`` and in ``record.json``, for all files of a kernel's folder
  (``kernel_folders.py``).
- Journal: ``journal`` in ``record.json``. Agents must know it before they start a holder, and
  cannot enter the journal's folder where it belongs to another OS user.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from relay.errors import OtherVersion

FIRST: Final = 1
"""The version of formats without a version, as relay 0.1 wrote them."""


class Format(NamedTuple):
    """One format: its name for messages, the version that is written, those that are read."""

    name: str
    writes: int
    reads: tuple[int, ...]

    def check(self, version: int, theirs: str, ours: str) -> None:
        """Raise `OtherVersion` for a version that is not read here.

        ``theirs`` names the writer for the message, ``ours`` the reader.
        """
        if version not in self.reads:
            raise self.refusal(version, theirs, ours)

    def refusal(self, version: int, theirs: str, ours: str) -> OtherVersion:
        """Make the error for two sides with different versions."""
        return OtherVersion(
            f"The {theirs} has version {version} of {self.name}, the {ours} has version "
            f"{self.writes}. One of them has to be upgraded."
        )


RECORDS: Final = Format("the relay's records", writes=1, reads=(1,))
FOLDER: Final = Format("its files", writes=1, reads=(1,))
JOURNAL: Final = Format("its journal", writes=1, reads=(1,))


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that the first record of each side of a link has in every version."""

    version: int = RECORDS.writes
