from __future__ import annotations

import json

import pytest

from relay.bridge import openings
from relay.bridge.control import (
    Attach,
    Attached,
    Call,
    Close,
    Phase,
    Position,
    Read,
    Reading,
    Status,
)
from relay.bridge.openings import AGENT, HOLDER, read_opening, refusal_record, refused
from relay.bridge.records import HEADER, RecordError, RecordKind, read_struct, struct_record
from relay.bridge.versions import Format, Opening
from relay.errors import OtherVersion

OPENINGS = [
    (RecordKind.ATTACH, Attach(link="l", principal="token:ada")),
    (RecordKind.ATTACHED, Attached(position=Position("e", 1), acknowledged=0)),
    (RecordKind.CALL, Call(id=0, op="status")),
    (
        RecordKind.STATUS,
        Status(
            phase=Phase.READY,
            name="python3",
            owner="token:ada",
            execution_state="idle",
            last_activity=0.0,
            connections=0,
        ),
    ),
    (RecordKind.READ, Read(after=0, limit=None, follow=False, message_bytes=1)),
    (RecordKind.READING, Reading(epoch="e", last_seq=0)),
]


@pytest.mark.parametrize(("kind", "opening"), OPENINGS)
def test_each_opening_bears_the_version(kind: RecordKind, opening: Opening) -> None:
    payload = struct_record(kind, opening)[HEADER.size :]
    assert json.loads(payload)["version"] == 1
    assert read_opening(payload, type(opening), AGENT, HOLDER) == opening


@pytest.mark.parametrize(("kind", "opening"), OPENINGS)
def test_without_a_version_it_is_the_first(kind: RecordKind, opening: Opening) -> None:
    payload = json.loads(struct_record(kind, opening)[HEADER.size :])
    del payload["version"]
    assert read_opening(json.dumps(payload).encode(), type(opening), AGENT, HOLDER) == opening


@pytest.mark.parametrize(("kind", "opening"), OPENINGS)
def test_another_version_is_refused_whatever_else_there_is(
    kind: RecordKind, opening: Opening
) -> None:
    with pytest.raises(OtherVersion, match=r"The agent has version 2 of .*holder has version 1"):
        read_opening(b'{"version":2,"link":{"new":"form"}}', type(opening), AGENT, HOLDER)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"version":"2"}', b'{"version":null}'])
def test_what_is_no_opening_is_no_other_version(payload: bytes) -> None:
    with pytest.raises(RecordError):
        read_opening(payload, Attach, AGENT, HOLDER)


def test_what_is_read_has_the_form_of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever passes it on says its own version, not that of whom it had it from.
    monkeypatch.setattr(openings, "RECORDS", Format("records", writes=1, reads=(1, 2)))
    found = read_opening(b'{"version":2,"epoch":"e","last_seq":3}', Reading, HOLDER, AGENT)
    assert found == Reading(epoch="e", last_seq=3, version=1)


def test_a_refusal_says_why_and_what_the_refusing_side_speaks() -> None:
    record = refusal_record("why")
    assert record[4] == RecordKind.CLOSE
    payload = record[HEADER.size :]
    assert json.loads(payload) == {"version": 1, "code": 1012, "reason": "why"}
    assert read_struct(payload, Close) == Close(1012, "why")
    assert "The kernel's holder has version 1 of" in refused(payload, HOLDER, AGENT).message


@pytest.mark.parametrize(("payload", "version"), [(b"{}", 1), (b'{"version":7,"new":0}', 7)])
def test_a_refusal_of_any_version_is_one(payload: bytes, version: int) -> None:
    error = refused(payload, HOLDER, AGENT)
    assert f"The kernel's holder has version {version} of" in error.message
    assert "the agent has version 1" in error.message
