"""The beginning of a link: each side states its version of the records, and may refuse the other's.

The following must stay the same in every version: the kinds ATTACH, ATTACHED, CLOSE, CALL, STATUS,
READ and READING, that their payloads are JSON objects with a ``version``, and the fields of a
CLOSE.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from relay.bridge.control import Close
from relay.bridge.messages import Buffer
from relay.bridge.records import RecordKind, read_struct, struct_record
from relay.bridge.versions import FIRST, RECORDS, Opening
from relay.errors import OtherVersion

EDGE: Final = "edge"
AGENT: Final = "agent"
HOLDER: Final = "kernel's holder"
"""Names of the sides of links, for `Format.check`."""

T = TypeVar("T", bound=Opening)


class _Versioned(msgspec.Struct, frozen=True):
    """The version in a payload."""

    version: int = FIRST


def read_opening(payload: Buffer, struct_type: type[T], theirs: str, ours: str) -> T:
    """Read the first record of the other side. ``theirs`` and ``ours`` are as in `Format.check`.

    Raises:
        OtherVersion: the other side has another version; this is checked first.
        RecordError: the payload is malformed.
    """
    RECORDS.check(read_struct(payload, _Versioned).version, theirs, ours)
    opening = read_struct(payload, struct_type)
    return msgspec.structs.replace(opening, version=RECORDS.writes)


def refusal_record(problem: str) -> bytes:
    """Make the CLOSE that is sent in place of an answer to refuse the other side."""
    return struct_record(RecordKind.CLOSE, Close(OtherVersion.close_code, problem))


def refused(payload: Buffer, theirs: str, ours: str) -> OtherVersion:
    """Return the error for a CLOSE in place of an answer. Raises `RecordError`."""
    return RECORDS.refusal(read_struct(payload, _Versioned).version, theirs, ours)
