from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bridge.control import (
    Attach,
    Attached,
    Call,
    Close,
    Detach,
    Disconnect,
    Failure,
    Gap,
    HolderFigures,
    Phase,
    Position,
    Read,
    Reading,
    Result,
    Status,
)
from relay.bridge.records import RecordError, RecordKind, RecordReader, read_struct, struct_record

POSITION = Position("0f" * 16, 2**53, 3)
STRUCTS: list[tuple[RecordKind, msgspec.Struct]] = [
    (RecordKind.ATTACH, Attach(link="ab" * 16, principal="token:ada")),
    (
        RecordKind.ATTACH,
        Attach(
            link="ab" * 16,
            principal="token:ada",
            session_id="s\0\u00e9\U0001f600",
            subprotocol="v1",
            position=POSITION,
            request_id="r",
        ),
    ),
    (RecordKind.ATTACHED, Attached(position=POSITION, acknowledged=2**63)),
    (RecordKind.CLOSE, Close(1011, 'why "so"')),
    (RecordKind.DETACH, Detach(disconnect=Disconnect.CLEAN, seq=4, fragment=1)),
    (RecordKind.CALL, Call(id=7, op="interrupt", request_id="r")),
    (RecordKind.RESULT, Result(id=7)),
    (RecordKind.RESULT, Result(id=7, failure=Failure("no", "Kernel error", 504))),
    (
        RecordKind.STATUS,
        Status(
            phase=Phase.FAILED,
            name="python3",
            owner="token:ada",
            execution_state="busy",
            last_activity=1.5,
            connections=2,
            failure=Failure("no"),
        ),
    ),
    (
        RecordKind.STATUS,
        Status(
            phase=Phase.READY,
            name="python3",
            owner="token:ada",
            execution_state="idle",
            last_activity=1.5,
            connections=0,
            figures=HolderFigures(
                journal_bytes=2**40, journal_problem="full", limit_hits={"a.b": 3}
            ),
        ),
    ),
    (
        RecordKind.READ,
        Read(after=2**60, limit=None, follow=True, message_bytes=2**30, request_id="r"),
    ),
    (RecordKind.READING, Reading(epoch="a1b2c3d4e5f6", last_seq=7)),
    (RecordKind.GAP, Gap(messages=3, seq=9, setting=None)),
]


@pytest.mark.parametrize(("kind", "struct_"), STRUCTS)
def test_a_struct_comes_back(kind: RecordKind, struct_: msgspec.Struct) -> None:
    ((found, payload),) = RecordReader(1 << 20).feed(struct_record(kind, struct_))
    assert found is kind
    assert read_struct(payload, type(struct_)) == struct_


@pytest.mark.parametrize("struct_", [struct_ for _, struct_ in STRUCTS])
def test_every_truncation_is_noticed(struct_: msgspec.Struct) -> None:
    payload = msgspec.json.encode(struct_)
    read_struct(payload, type(struct_))
    for end in range(len(payload)):
        with pytest.raises(RecordError):
            read_struct(payload[:end], type(struct_))
    with pytest.raises(RecordError):
        read_struct(payload + b"\x01", type(struct_))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"{}", b'"a"', b"\xff", b"[" * 10**6])
def test_what_is_no_struct_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError):
        read_struct(payload, Attach)


def test_deep_nesting_in_a_field_nobody_knows_is_refused() -> None:
    with pytest.raises(RecordError):
        read_struct(b'{"clean": true, "x": ' + b"[" * 10**6, Detach)


def test_fields_that_a_newer_version_adds_are_ignored() -> None:
    assert read_struct(b'{"seq": 4, "why": [1]}', Detach) == Detach(seq=4)


def test_a_holder_of_an_older_version_leaves_its_figures_out() -> None:
    told = (
        b'{"phase":"ready","name":"ir","owner":"token:ada","execution_state":"idle",'
        b'"last_activity":1.0,"connections":0}'
    )
    assert read_struct(told, Status).figures is None


def test_a_call_for_an_unknown_operation_is_refused() -> None:
    payload = b'{"version": 1, "id": 1, "op": "explode"}'
    with pytest.raises(RecordError, match="not a Call record"):
        read_struct(payload, Call)
    known = payload.replace(b"explode", b"restart")
    assert read_struct(known, Call).op == "restart"


@given(st.integers(0, 10**18 - 1))
def test_a_position_comes_back_from_the_form_that_clients_see(seq: int) -> None:
    assert Position.parse(str(Position("a1b2c3d4e5f6", seq))) == Position("a1b2c3d4e5f6", seq)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a1b2c3d4e5f6", "a1b2c3d4e5f6-", "-1", "a1b2c3d4e5f6-1 ", "a1b2c3d4e5f6-1\n"),
        *("A1B2C3D4E5F6-1", "a1b2c3d4e5f-1", "a1b2c3d4e5f6--1", "a1b2c3d4e5f6-\u0661"),
        "a1b2c3d4e5f6-" + "1" * 19,
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a position is"):
        Position.parse(text)
