from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bridge.control import Position
from relay.client.delivery_tracker import DeliveryTracker, parse_position
from relay.errors import BadRequest

E = "0123456789ab"


def seq(number: int, epoch: str = E) -> Position:
    return Position(epoch, number)


def test_a_position_reads_what_it_writes() -> None:
    assert parse_position(f"{E}-17") == seq(17)
    assert str(seq(17)) == f"{E}-17"


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "17", E, f"{E}-", f"{E}--1", f"{E}-x", f"{E}-1 ", f"{E}-1\n", "0123-1"),
        *("0123456789AB-1", f"{E}-٣", f"{E}-{'9' * 19}"),
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="position"):
        parse_position(text)


def test_what_came_before_is_told_from_what_is_new() -> None:
    tracker = DeliveryTracker(seq(5))
    assert [tracker.receive(seq(number)) for number in (4, 5, 6, 6, 9)] == [0, 0, 1, 0, 1]
    assert tracker.repeated == 3
    assert tracker.received == seq(9)


def test_numbers_of_another_epoch_mean_something_else() -> None:
    tracker = DeliveryTracker(seq(5))
    assert tracker.receive(seq(1, "ba9876543210"))
    assert tracker.received == seq(1, "ba9876543210")


def test_nothing_is_known_before_something_came() -> None:
    assert DeliveryTracker(None).position is None
    assert DeliveryTracker(seq(3)).position == seq(3)


def test_the_position_stands_before_what_waits_for_any_reader() -> None:
    tracker = DeliveryTracker(None)
    for number in (3, 4, 5):
        tracker.receive(seq(number))
        tracker.hold(seq(number), 10)
    tracker.hold(seq(3), 10)
    assert (tracker.position, tracker.held_bytes) == (seq(2), 40)
    for number in (4, 3):
        tracker.fetch(10)
        assert tracker.position == seq(2)
        tracker.release(seq(number))
    assert tracker.position == seq(2)  # somebody else has still to read it
    tracker.fetch(10)
    tracker.release(seq(3))
    assert (tracker.position, tracker.held_bytes) == (seq(4), 10)
    tracker.fetch(10)
    tracker.release(seq(5))
    assert (tracker.position, tracker.held_bytes) == (seq(5), 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40))
def test_whoever_goes_on_from_the_position_misses_nothing(steps: list[tuple[int, bool]]) -> None:
    """Readers take from their queues in any order; the position never passes what one wants."""
    tracker = DeliveryTracker(None)
    queues: list[deque[int]] = [deque(), deque()]
    for number, (reader, reads) in enumerate(steps, 1):
        tracker.receive(seq(number))
        if reader < 2:
            tracker.hold(seq(number), 1)
            queues[reader].append(number)
        if reads:
            for queue in queues:
                if queue:
                    tracker.fetch(1)
                    tracker.release(seq(queue.popleft()))
        unread = [each for queue in queues for each in queue]
        assert tracker.position == seq(min(unread) - 1 if unread else number)
        assert tracker.held_bytes == len(unread)
