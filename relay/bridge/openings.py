"""How a link begins: each side names its version of the records, and may refuse the other's.

This has to be the same in every version: the kinds ATTACH, ATTACHED, CLOSE, CALL, STATUS, READ and
READING, that their payloads are JSON objects with a ``version``, and all that is in a CLOSE.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from relay.bridge.messages import Buffer
from relay.bridge.records import Close, RecordKind, read_struct, struct_record
from relay.bridge.versions import FIRST, RECORDS, Opening
from relay.errors import OtherVersion

EDGE: Final = "edge"
AGENT: Final = "agent"
HOLDER: Final = "kernel's holder"
"""The sides of links, as `Format.check` names them."""

T = TypeVar("T", bound=Opening)


class _Noted(msgspec.Struct, frozen=True):
    """The version that a payload names."""

    version: int = FIRST


def read_opening(payload: Buffer, struct_type: type[T], theirs: str, ours: str) -> T:
    """The first record of the other side, in the form that it has in this version.

    ``theirs`` and ``ours`` name the two sides, as in `Format.check`. Raises `OtherVersion`, which
    is found out before anything else, and `RecordError`.
    """
    RECORDS.check(read_struct(payload, _Noted).version, theirs, ours)
    opening = read_struct(payload, struct_type)
    return msgspec.structs.replace(opening, version=RECORDS.writes)


def refusal_record(problem: str) -> bytes:
    """The CLOSE that stands in the place of an answer: why the other side is refused."""
    return struct_record(RecordKind.CLOSE, Close(OtherVersion.close_code, problem))


def refused(payload: Buffer, theirs: str, ours: str) -> OtherVersion:
    """What a CLOSE in the place of an answer means. Raises `RecordError`."""
    return RECORDS.refusal(read_struct(payload, _Noted).version, theirs, ours)
