from __future__ import annotations

import asyncio

import pytest

from relay.bridge.control import Position
from relay.bridge.messages import Channel, Header, Message
from relay.client.delivery_tracker import DeliveryTracker
from relay.client.inbox import Inbox
from relay.client.kernel_message import KernelMessage
from relay.errors import KernelError
from tests.virtualtime import settle, virtual


def message(number: int) -> KernelMessage:
    raw = Message(Channel.IOPUB, b"", b"", b"", b"12345")
    return KernelMessage(Position("0123456789ab", number), Header(), Header(), raw)


@virtual
async def test_messages_come_in_their_order_and_then_the_end() -> None:
    inbox = Inbox(DeliveryTracker(None), lambda: None)
    for number in (1, 2):
        inbox.put(message(number))
    inbox.end(None)
    inbox.put(message(3))
    assert [await inbox.get() for _ in range(4)] == [message(1), message(2), None, None]


@virtual
async def test_an_error_comes_after_what_came_before_it() -> None:
    inbox = Inbox(DeliveryTracker(None), lambda: None)
    inbox.put(message(1))
    inbox.end(KernelError("first"))
    inbox.end(KernelError("second"))
    assert await inbox.get() == message(1)
    for _ in range(2):
        with pytest.raises(KernelError, match="first"):
            await inbox.get()


@virtual
async def test_a_reader_may_come_first_and_be_cancelled() -> None:
    inbox = Inbox(DeliveryTracker(None), lambda: None)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(inbox.get())
        await settle()
        first.cancel()
        second = tasks.create_task(inbox.get())
        await settle()
        inbox.put(message(1))
    assert second.result() == message(1)


@virtual
async def test_there_is_room_when_a_message_was_taken_and_a_position_when_it_was_read() -> None:
    tracker, rooms = DeliveryTracker(None), []
    inbox = Inbox(tracker, lambda: rooms.append(tracker.held_bytes))
    for number in (4, 5):
        tracker.receive(Position("0123456789ab", number))
        inbox.put(message(number))
    taken = await inbox.get()
    assert taken is not None
    assert (rooms, str(tracker.position)) == ([5], "0123456789ab-3")
    inbox.done(taken)
    assert str(tracker.position) == "0123456789ab-4"


@virtual
async def test_what_nobody_reads_is_not_kept() -> None:
    tracker, rooms = DeliveryTracker(None), []
    inbox = Inbox(tracker, lambda: rooms.append(tracker.held_bytes))
    inbox.put(message(1))
    inbox.close()
    inbox.put(message(2))
    assert (tracker.held_bytes, tracker.position, rooms) == (0, None, [0])
