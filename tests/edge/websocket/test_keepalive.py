from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from relay.bridge.control import Position
from relay.config import WebSocketSettings
from relay.edge.websocket.keepalive import KeepAlive
from tests.edge.websocket.ends import (
    PING,
    PONG_TIMEOUT,
    PROOF,
    farewell,
    linked,
    output,
    pings,
    pong,
    proofs,
    relinked,
    seq,
)
from tests.fakes import text
from tests.virtualtime import settle, virtual

SETTINGS = WebSocketSettings(ping_interval=PING, pong_timeout=PONG_TIMEOUT, proof_interval=PROOF)


def begun(at: int = 10) -> KeepAlive:
    """A client that begins at this seq at the time 0."""
    keepalive = KeepAlive(SETTINGS, 0.0)
    keepalive.start_epoch(at)
    return keepalive


def test_a_quiet_client_is_pinged_at_its_interval() -> None:
    keepalive = begun()
    now = PING
    for _ in range(3):
        assert keepalive.on_timer(now, reading=True) == (seq(10), PING)
        # Its pong proves nothing that was not known.
        assert keepalive.on_pong(seq(10)) is None
        assert keepalive.schedule_proof(now) is None
        now += PING


def test_output_is_proved_at_once_and_then_at_the_interval() -> None:
    keepalive = begun()
    keepalive.sent = 11
    assert keepalive.schedule_proof(5.0) == 0
    assert keepalive.on_timer(5.0, reading=True) == (seq(11), PROOF)
    keepalive.sent = 12
    # One ping is in flight, however long.
    assert keepalive.schedule_proof(5.01) is None
    assert keepalive.schedule_proof(5.0 + 2 * PROOF) is None
    assert keepalive.on_pong(seq(11)) == 11
    # The timer is due for the next proof already.
    assert keepalive.schedule_proof(5.02) is None
    assert keepalive.on_timer(5.2, reading=True) == (seq(12), PROOF)
    assert keepalive.on_pong(seq(12)) == 12
    assert keepalive.proved == 12
    # All is proved by the time the timer fires.
    assert keepalive.on_timer(5.4, reading=True) == (None, PING)
    keepalive.sent = 13
    assert keepalive.schedule_proof(5.41) == 0


def test_a_timer_that_is_for_a_ping_is_made_to_fire_for_a_proof() -> None:
    keepalive = begun()
    assert keepalive.on_timer(PING, reading=True) == (seq(10), PING)
    keepalive.on_pong(seq(10))
    keepalive.sent = 11
    assert keepalive.schedule_proof(PING + 0.05) == pytest.approx(0.15)
    keepalive.sent = 12
    assert keepalive.schedule_proof(PING + 0.1) is None
    assert keepalive.on_timer(PING + 0.2, reading=True) == (seq(12), PROOF)


@pytest.mark.parametrize("payload", [b"", seq(10), seq(12), seq(11) + b"\0", seq(11)[:-1]])
def test_only_the_payload_in_flight_is_a_proof(payload: bytes) -> None:
    keepalive = begun()
    assert keepalive.on_pong(payload) is None
    keepalive.sent = 11
    keepalive.on_timer(1.0, reading=True)
    assert keepalive.on_pong(payload) is None
    assert keepalive.proved == 10
    assert keepalive.on_pong(seq(11)) == 11
    assert keepalive.on_pong(seq(11)) is None


def test_a_ping_of_one_epoch_proves_nothing_in_the_next() -> None:
    keepalive = begun()
    keepalive.sent = 11
    keepalive.on_timer(1.0, reading=True)
    keepalive.start_epoch(3)
    assert keepalive.on_pong(seq(11)) is None
    assert (keepalive.sent, keepalive.proved) == (3, 3)
    assert keepalive.schedule_proof(1.1) is None


def test_a_client_is_silent_beyond_the_timeout_from_its_last_byte() -> None:
    keepalive = begun()
    assert keepalive.on_timer(PING, reading=True).ping == seq(10)
    keepalive.last_received = PING + 10
    due = PING + 10 + PONG_TIMEOUT
    # The timer fires when the answer is overdue, however long its interval.
    assert keepalive.on_timer(due - 5, reading=True).wait == pytest.approx(5.01)
    assert keepalive.on_timer(due, reading=True).wait == pytest.approx(0.01)
    assert keepalive.on_timer(due + 0.01, reading=False).wait == pytest.approx(0.01)
    assert keepalive.on_timer(due + 0.01, reading=True).wait is None


moments = st.tuples(st.floats(0, 2 * PROOF), st.sampled_from(["output", "pong"]))


@given(st.lists(moments, max_size=60))
def test_pings_keep_their_distance_and_prove_what_was_sent(
    moments: list[tuple[float, str]],
) -> None:
    keepalive, now, due = begun(), 0.0, PING
    sent_at, in_flight = -math.inf, b""

    def fire() -> None:
        nonlocal due, sent_at, in_flight
        ping, wait = keepalive.on_timer(now, reading=True)
        assert wait is not None
        due = now + wait
        if ping is not None:
            assert in_flight == b""
            assert now - sent_at >= PROOF * 0.999
            assert ping == seq(keepalive.sent)
            sent_at, in_flight = now, ping

    for pause, event in moments:
        end = now + pause
        while due <= end:
            now = due
            fire()
        now = end
        if event == "output":
            keepalive.sent += 1
        elif in_flight:
            keepalive.on_pong(in_flight)
            assert seq(keepalive.proved) == in_flight
            in_flight = b""
        wait = keepalive.schedule_proof(now)
        if wait == 0:
            fire()
        elif wait is not None:
            due = now + wait
        # Whatever is not proved is asked for, or is about to be.
        if keepalive.sent > keepalive.proved and not in_flight:
            assert due <= sent_at + 2 * PROOF * 1.001


# In a pipe: proofs


@virtual
async def test_a_pong_proves_what_was_sent_before_its_ping() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    # Right behind the first frames: what comes alone is proved at once.
    (frame, ping) = browser.received()
    assert (frame.opcode, ping.opcode, ping.data) == (Opcode.TEXT, Opcode.PING, seq(11))
    assert proofs(agent) == []
    browser.send(pong(seq(11)))
    assert proofs(agent) == [11]
    agent.send(output(12), output(12, 1, b"\x01\x01a"))
    await asyncio.sleep(PROOF * 0.9)
    assert pings(browser) == []
    await asyncio.sleep(PROOF * 0.2)
    # It stands behind the frames, within a message, whose seq it does not count.
    assert pings(browser) == [seq(12)]
    agent.send(output(13, 0, b"\x80\x01b"))
    browser.send(pong(seq(12)))
    assert proofs(agent) == [12]


@virtual
async def test_half_a_message_is_nothing_to_ask_for() -> None:
    _, browser, agent = linked()
    agent.send(output(10, 1, b"\x01\x01a"))
    await asyncio.sleep(10 * PROOF)
    assert pings(browser) == []


@virtual
async def test_one_ping_at_a_time_and_no_more_than_needed() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(10 * PROOF)
    agent.send(output(12))
    await asyncio.sleep(10 * PROOF)
    assert pings(browser) == [seq(11)]
    browser.send(pong(seq(11)))
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(12)]
    browser.send(pong(seq(12)))
    # Everything is proved: only the usual pings go on.
    await asyncio.sleep(PING - PROOF)
    assert pings(browser) == []
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(12)]
    browser.send(pong(seq(12)))
    assert proofs(agent) == [11, 12]


@virtual
async def test_a_busy_stream_is_proved_at_the_set_rhythm() -> None:
    _, browser, agent = linked()
    count = 0
    for number in range(200):
        agent.send(output(11 + number))
        await asyncio.sleep(0.01)
        for data in pings(browser):
            browser.send(pong(data))
            count += 1
    assert 10 <= count <= 11


@pytest.mark.parametrize("data", [b"x", seq(12), seq(2**63), seq(11) + b"\0"])
@virtual
async def test_a_pong_that_answers_no_ping_proves_nothing(data: bytes) -> None:
    _, browser, agent = linked()
    agent.send(output(11), output(12))
    browser.send(pong(data))
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(11)]
    browser.send(pong(data[:-1] + b"\0"), pong(b"\0" + data))
    assert proofs(agent) == []
    browser.send(pong(seq(11)), pong(seq(11)))
    assert proofs(agent) == [11]


@virtual
async def test_where_reading_starts_needs_no_proof() -> None:
    _, browser, agent = linked()
    await asyncio.sleep(PING - 1)
    assert pings(browser) == []
    await asyncio.sleep(2)
    browser.send(pong(*pings(browser)))
    assert proofs(agent) == []


@virtual
async def test_a_proof_without_a_link_is_told_to_the_next() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(2 * PROOF)
    agent.transport.lose()
    browser.send(pong(seq(11)))
    assert proofs(relinked(pipe)) == [11]


@virtual
async def test_a_proof_means_nothing_in_another_epoch() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(2 * PROOF)
    agent.transport.lose()
    agent = relinked(pipe, position=Position("e2", 5))
    browser.send(pong(seq(11)))
    agent.send(output(6))
    assert proofs(agent) == []
    assert pings(browser) == [seq(11), seq(6)]
    browser.send(pong(seq(6)))
    assert proofs(agent) == [6]


# In a pipe: silence


@virtual
async def test_a_quiet_client_is_pinged_and_stays() -> None:
    _, browser, _ = linked()
    for _ in range(10):
        await asyncio.sleep(PING)
        await settle()
        (data,) = pings(browser)
        browser.send(pong(data))
    assert not browser.transport.is_closing()


@virtual
async def test_a_silent_client_is_cut_off() -> None:
    pipe, browser, agent = linked()
    await asyncio.sleep(PING + PONG_TIMEOUT - 1)
    assert not browser.transport.is_closing()
    await asyncio.wait_for(pipe.finished.wait(), PING + 2)
    assert browser.transport.aborted
    assert farewell(agent).disconnect is None


@virtual
async def test_a_silent_client_that_is_sent_output_is_cut_off_at_the_timeout() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(PONG_TIMEOUT)
    assert not browser.transport.is_closing()
    await asyncio.wait_for(pipe.finished.wait(), 3 * PROOF)


@virtual
async def test_whoever_talks_is_not_silent() -> None:
    _, browser, _ = linked()
    for _ in range(100):
        await asyncio.sleep(PING / 2)
        browser.send(text(b"{}"))
    assert not browser.transport.is_closing()


@virtual
async def test_a_client_that_we_do_not_read_from_is_not_silent() -> None:
    _, browser, agent = linked()
    await asyncio.sleep(PING + 1)
    agent.link.pause_writing()
    await asyncio.sleep(10 * PONG_TIMEOUT)
    agent.link.resume_writing()
    assert not browser.transport.is_closing()
    # From now on it has its time to answer.
    await asyncio.sleep(PONG_TIMEOUT - 1)
    assert not browser.transport.is_closing()
    await asyncio.sleep(PING + 2)
    assert browser.transport.aborted


@virtual
async def test_nothing_is_left_over_when_the_client_is_gone() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    await settle()
    browser.transport.lose()
    loop: Any = asyncio.get_running_loop()
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]
    await asyncio.sleep(10 * PING)
