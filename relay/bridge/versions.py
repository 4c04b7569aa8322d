"""Versions of the formats that outlive a process or stand between two: written here, read here.

A holder runs for as long as its kernel, under whatever agents are installed meanwhile. So each of
these formats bears a version, and each reader checks it before it makes anything of the rest:

- Records: ``version`` in ATTACH, CALL and READ, which open a connection, in their answers
  (ATTACHED, STATUS, READING), and in a CLOSE that refuses them (``openings.py``).
- Folder: ``version`` in ``request.json`` and in ``record.json``, for all files of a kernel's folder
  (``kernel_folders.py``).
- Journal: ``journal`` in ``record.json``. Agents have to know it before they start a holder, and
  may not enter the journal's folder where it is another OS user's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from relay.errors import OtherVersion

FIRST: Final = 1
"""The version of what bears none, as all does that 0.1 has written."""


class Format(NamedTuple):
    """One format: its name in a sentence, the version that is written and those that are read."""

    name: str
    writes: int
    reads: tuple[int, ...]

    def check(self, version: int, theirs: str, ours: str) -> None:
        """Raise `OtherVersion` for a version that is not read here.

        ``theirs`` names in a sentence who has written it, and ``ours`` who reads it.
        """
        if version not in self.reads:
            raise self.refusal(version, theirs, ours)

    def refusal(self, version: int, theirs: str, ours: str) -> OtherVersion:
        """The error for two sides of different versions."""
        return OtherVersion(
            f"The {theirs} has version {version} of {self.name}, the {ours} has version "
            f"{self.writes}. One of them has to be upgraded."
        )


RECORDS: Final = Format("the relay's records", writes=1, reads=(1,))
FOLDER: Final = Format("its files", writes=2, reads=(1, 2))
JOURNAL: Final = Format("its journal", writes=1, reads=(1,))


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What the first record of each side of a link has, of which version it may be."""

    version: int = RECORDS.writes
