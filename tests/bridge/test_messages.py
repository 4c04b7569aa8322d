from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session

from relay.bridge.messages import Channel, Header, Message, parse_header, synthetic
from relay.errors import MalformedMessage

HEADER = {
    "msg_id": "0c5b_1",
    "msg_type": "execute_request",
    "session": "0c5b",
    "username": "ada",
    "version": "5.3",
    "date": "2026-11-01T12:00:00.000000Z",
}


@pytest.mark.parametrize("channel", Channel)
def test_a_channel_is_found_by_its_wire_name(channel: Channel) -> None:
    assert Channel.from_wire(channel.wire) is channel


def test_the_channels_have_jupyters_names() -> None:
    assert [channel.wire for channel in Channel] == ["shell", "iopub", "stdin", "control"]


@pytest.mark.parametrize("name", ["", "Shell", "SHELL", "hb", "shell ", "0"])
def test_other_names_are_no_channel(name: str) -> None:
    with pytest.raises(ValueError, match="no such channel"):
        Channel.from_wire(name)


def test_size_counts_every_part() -> None:
    parts = b"1", b"22", memoryview(b"333"), b"4444"
    assert Message(Channel.SHELL, *parts).size == 1 + 2 + 3 + 4
    assert Message(Channel.SHELL, *parts, (b"55555", memoryview(b"666666"))).size == 10 + 5 + 6


def test_a_header_is_read() -> None:
    raw = json.dumps(HEADER).encode()
    assert parse_header(raw) == Header(**HEADER)
    assert parse_header(memoryview(raw)) == Header(**HEADER)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(HEADER, st.text())))
def test_any_text_and_any_missing_field_is_read(fields: dict[str, str]) -> None:
    assert parse_header(json.dumps(fields).encode()) == Header(**fields)
    assert parse_header(json.dumps(fields, ensure_ascii=False).encode()) == Header(**fields)


def test_a_header_without_anything_is_empty() -> None:
    assert parse_header(b"{}") == Header(
        msg_id="", msg_type="", session="", username="", version="", date=None
    )


def test_unknown_fields_and_nulls_that_nobody_reads_are_tolerated() -> None:
    raw = b'{"msg_id": "1", "subshell_id": [1], "date": null, "username": null, "version": null}'
    assert parse_header(raw).msg_id == "1"


@pytest.mark.parametrize("date", [b"1795420307", b"1795420307.839742", b'""'])
def test_a_date_may_be_a_number_as_the_gateway_client_sends_it(date: bytes) -> None:
    assert parse_header(b'{"msg_id": "1", "date": %b}' % date).msg_id == "1"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"secret"',
        b"{}{}",
        b'{"msg_id": 1}',
        b'{"msg_id": null}',
        b'{"session": null}',
        b'{"msg_type": {}}',
        b'{"msg_id": "secret\xff"}',
        b'{"msg_id": NaN}',
        b'{"deep": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_header_is_refused_and_not_quoted(raw: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_header(raw)
    assert "secret" not in caught.value.message
    assert caught.value.__suppress_context__


def test_a_header_cut_anywhere_is_refused() -> None:
    raw = json.dumps(HEADER).encode()
    for end in range(len(raw)):
        with pytest.raises(MalformedMessage):
            parse_header(raw[:end])


def test_jupyter_reads_a_synthetic_message() -> None:
    message = synthetic(
        Channel.IOPUB,
        "status",
        {"execution_state": "restarting"},
        session="kernel-session",
        msg_id="1",
        date="2026-11-01T12:00:00.000000Z",
        username="ada",
    )
    assert (message.channel, message.buffers) == (Channel.IOPUB, ())
    parts = [message.header, message.parent_header, message.metadata, message.content]
    read = Session(key=b"").deserialize([b"", *map(bytes, parts)])
    assert read["header"] | {"date": None} == {
        "msg_id": "1",
        "msg_type": "status",
        "username": "ada",
        "session": "kernel-session",
        "date": None,
        "version": "5.3",
    }
    assert read["header"]["date"].isoformat() == "2026-11-01T12:00:00+00:00"
    assert read["parent_header"] == read["metadata"] == {}
    assert read["content"] == {"execution_state": "restarting"}


def test_a_synthetic_message_keeps_the_bytes_of_its_parent() -> None:
    parent = b'{"msg_id":   "spaced"}'
    message = synthetic(
        Channel.SHELL, "reply", {}, session="", msg_id="", date="", parent_header=parent
    )
    assert message.parent_header is parent


@given(
    channel=st.sampled_from(Channel),
    parts=st.lists(st.binary(max_size=20), min_size=4, max_size=9),
)
def test_a_message_is_its_parts_in_wire_order(channel: Channel, parts: list[bytes]) -> None:
    message = Message.from_parts(channel, parts)
    assert message.parts == tuple(parts)
    assert (message.header, message.content, message.buffers) == (
        parts[0],
        parts[3],
        tuple(parts[4:]),
    )
    assert message.size == sum(map(len, parts))


@pytest.mark.parametrize("count", range(4))
def test_a_message_has_four_parts_at_least(count: int) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        Message.from_parts(Channel.SHELL, [b"{}"] * count)
