from __future__ import annotations

from relay.backoff import ExponentialDelay


def test_delays_double_up_to_the_limit() -> None:
    delays = ExponentialDelay(0.5, 3.0)
    assert [delays.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_reset_begins_with_the_first_delay() -> None:
    delays = ExponentialDelay(0.5, 3.0)
    assert [delays.next(), delays.next()] == [0.5, 1.0]
    delays.reset()
    assert [delays.next(), delays.next()] == [0.5, 1.0]


def test_no_delay_is_over_the_limit() -> None:
    delays = ExponentialDelay(0.5, 0.2)
    assert [delays.next(), delays.next()] == [0.2, 0.2]
    delays.reset()
    assert delays.next() == 0.2


def test_thousands_of_delays_do_not_overflow() -> None:
    delays = ExponentialDelay(0.1, 5.0)
    assert [delays.next() for _ in range(5000)][-1] == 5.0
