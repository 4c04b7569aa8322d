from __future__ import annotations

from relay.client.outbox import Outbox


def sent(outbox: Outbox) -> list[bytes]:
    """Take all that may be sent now."""
    return list(iter(outbox.next_unsent, None))


def outbox_of(*msg_ids: str, in_flight: int = 9) -> Outbox:
    """Make an outbox of requests whose payloads are their ids."""
    outbox = Outbox(in_flight)
    for msg_id in msg_ids:
        outbox.request(msg_id, msg_id.encode())
    return outbox


def test_a_request_is_sent_once_on_one_websocket() -> None:
    outbox = outbox_of("a", "b")
    assert sent(outbox) == [b"a", b"b"]
    assert sent(outbox) == []


def test_requests_without_a_response_are_sent_again_in_their_order() -> None:
    outbox = outbox_of("a", "b", "c")
    assert len(sent(outbox)) == 3
    outbox.received("b")
    outbox.reconnected()
    assert sent(outbox) == [b"a", b"c"]


def test_a_request_that_ends_unsent_is_never_sent() -> None:
    outbox = outbox_of("a", "b")
    outbox.received("a")
    assert sent(outbox) == [b"b"]


def test_a_response_makes_room_for_the_next_request() -> None:
    outbox = outbox_of("a", "b", "c", in_flight=2)
    told: list[None] = []
    outbox.on_unsent = lambda: told.append(None)
    assert sent(outbox) == [b"a", b"b"]
    outbox.received("a")
    assert len(told) == 1
    assert sent(outbox) == [b"c"]
    # Nothing waits for room any more, and a second response makes none.
    outbox.received("b")
    outbox.received("b")
    assert len(told) == 1


def test_answers_pass_requests_and_the_limit() -> None:
    outbox = outbox_of("a", "b", in_flight=1)
    assert sent(outbox) == [b"a"]
    outbox.answer("a", b"yes")
    assert sent(outbox) == [b"yes"]


def test_the_latest_answer_is_sent_again_until_the_kernel_has_it() -> None:
    outbox = outbox_of("a")
    outbox.received("a")
    outbox.answer("a", b"yes")
    outbox.answer("a", b"no")
    sent(outbox)
    outbox.reconnected()
    assert sent(outbox) == [b"no"]
    outbox.reconnected()
    outbox.answered("a")
    assert sent(outbox) == []


def test_whatever_there_is_to_send_is_announced() -> None:
    outbox = Outbox(9)
    told: list[str] = []
    outbox.on_unsent = lambda: told.append("unsent")
    outbox.request("a", b"a")
    outbox.answer("a", b"yes")
    outbox.reconnected()
    assert told == ["unsent"] * 3
