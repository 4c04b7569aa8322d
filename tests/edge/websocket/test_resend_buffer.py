from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.bridge.records import message_record
from relay.edge.websocket.resend_buffer import ResendBuffer
from tests.edge.websocket.ends import acknowledge, linked, relinked, submitted
from tests.fakes import binary, text
from tests.virtualtime import virtual


def numbered(number: int, payload: bytes = b"x") -> bytes:
    return message_record(number, text=True, payload=payload)


def test_messages_are_numbered_and_kept_in_order() -> None:
    buffer = ResendBuffer(1000)
    assert list(buffer) == []
    assert buffer.add(b"a", text=True) == numbered(1, b"a")
    assert buffer.add(b"b", text=False) == message_record(2, text=False, payload=b"b")
    assert list(buffer) == [numbered(1, b"a"), message_record(2, text=False, payload=b"b")]


def test_an_acknowledgement_is_for_all_messages_up_to_its_number() -> None:
    buffer = ResendBuffer(1000)
    for _ in range(4):
        buffer.add(b"x", text=True)
    for number, left in ((0, [1, 2, 3, 4]), (2, [3, 4]), (1, [3, 4]), (4, []), (99, [])):
        buffer.acknowledge(number)
        assert list(buffer) == [numbered(each) for each in left]
    # Numbers go on, whatever was acknowledged.
    assert buffer.add(b"x", text=True) == numbered(5)


def test_a_buffer_is_full_beyond_its_limit_and_takes_more_all_the_same() -> None:
    size = len(numbered(1))
    buffer = ResendBuffer(2 * size)
    for full in (False, False, True, True):
        buffer.add(b"x", text=True)
        assert buffer.full is full
    for number, full in ((1, True), (2, False)):
        buffer.acknowledge(number)
        assert buffer.full is full
    assert buffer.bytes == 2 * size


@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 30))))
def test_a_buffer_holds_what_was_added_and_not_acknowledged(steps: list[bytes | int]) -> None:
    buffer = ResendBuffer(100)
    held: dict[int, bytes] = {}
    added = 0
    for step in steps:
        if isinstance(step, bytes):
            added += 1
            held[added] = buffer.add(step, text=True)
        else:
            buffer.acknowledge(step)
            held = {number: record for number, record in held.items() if number > step}
        assert list(buffer) == list(held.values())
        assert buffer.bytes == sum(map(len, held.values()))
        assert buffer.full is (buffer.bytes > 100)


# In a pipe


@virtual
async def test_what_was_not_acknowledged_is_sent_again_in_order() -> None:
    pipe, browser, agent = linked()
    browser.send(text(b"1"), text(b"2"), text(b"3"))
    agent.send(acknowledge(1))
    agent.transport.lose()
    browser.send(text(b"4"), binary(b"5"))
    # The holder had the second, but the link broke before it could say so.
    agent = relinked(pipe, acknowledged=2)
    again = [(3, True, b"3"), (4, True, b"4"), (5, False, b"5")]
    assert submitted(agent) == again
    browser.send(text(b"6"))
    assert submitted(agent) == [(6, True, b"6")]
    agent.transport.lose()
    assert submitted(relinked(pipe, acknowledged=0)) == [*again, (6, True, b"6")]


@virtual
async def test_what_was_acknowledged_is_never_sent_again() -> None:
    pipe, browser, agent = linked()
    browser.send(text(b"1"), text(b"2"))
    agent.send(acknowledge(2), acknowledge(1))
    agent.transport.lose()
    assert submitted(relinked(pipe)) == []


@virtual
async def test_a_client_is_paused_while_too_much_is_unacknowledged() -> None:
    _, browser, agent = linked(unacknowledged_bytes=250)
    browser.send(text(bytes(100)))
    browser.send(text(bytes(100)))
    assert browser.transport.is_reading()
    browser.send(text(bytes(100)))
    assert not browser.transport.is_reading()
    agent.send(acknowledge(1))
    assert browser.transport.is_reading()


@virtual
async def test_a_client_without_a_link_is_paused_in_time() -> None:
    pipe, browser, agent = linked(unacknowledged_bytes=250)
    agent.transport.lose()
    for _ in range(3):
        assert browser.transport.is_reading()
        browser.send(text(bytes(100)))
    assert not browser.transport.is_reading()
    relinked(pipe, acknowledged=2)
    assert browser.transport.is_reading()
