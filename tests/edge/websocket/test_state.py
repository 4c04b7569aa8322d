from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close as CloseFrame
from websockets.frames import Opcode

from relay.bridge.control import Disconnect
from relay.edge.websocket.client_frames import ClientFrames
from relay.edge.websocket.state import TRANSITIONS, State, Trigger
from tests.edge.websocket.ends import CLOSE, UNKNOWN, frames_of, receive
from tests.fakes import client_frame, text

GRID = """
                   CLIENT_CLOSE       CLOSE         FAIL    ABORT    CONNECTION_LOST
OPEN               CLOSING_BY_CLIENT  CLOSING_HERE  FAILED  ABORTED  CLOSED
CLOSING_BY_CLIENT  -                  -             -       ABORTED  CLOSED
CLOSING_HERE       -                  -             FAILED  ABORTED  CLOSED
FAILED             -                  -             -       ABORTED  CLOSED
ABORTED            -                  -             -       -        CLOSED
CLOSED             -                  -             -       -        -
"""
"""Where each trigger leads from each state; - is nowhere."""
_HEAD, *_ROWS = [line.split() for line in GRID.strip().splitlines()]
EXPECTED = {
    (State[name], Trigger[trigger]): State[name if after == "-" else after]
    for name, *row in _ROWS
    for trigger, after in zip(_HEAD, row, strict=True)
}
WAY = {
    State.OPEN: [],
    State.CLOSING_BY_CLIENT: [Trigger.CLIENT_CLOSE],
    State.CLOSING_HERE: [Trigger.CLOSE],
    State.FAILED: [Trigger.FAIL],
    State.ABORTED: [Trigger.ABORT],
    State.CLOSED: [Trigger.CONNECTION_LOST],
}
"""How each state is reached."""


def pull(frames: ClientFrames, trigger: Trigger) -> None:
    """Let happen to a WebSocket what the trigger stands for."""
    match trigger:
        case Trigger.CLIENT_CLOSE:
            receive(frames, CLOSE)
        case Trigger.FAIL:
            receive(frames, UNKNOWN)
        case Trigger.CLOSE:
            frames.close(1012, "")
        case Trigger.ABORT:
            frames.abort()
        case Trigger.CONNECTION_LOST:
            frames.connection_lost()


def test_the_table_is_the_grid() -> None:
    table = {
        (state, trigger): after
        for state, row in TRANSITIONS.items()
        for trigger, after in row.items()
    }
    assert table == {key: after for key, after in EXPECTED.items() if after is not key[0]}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", Trigger)
def test_each_trigger_in_each_state(state: State, trigger: Trigger) -> None:
    frames = frames_of()
    for step in WAY[state]:
        pull(frames, step)
    assert frames.state is state
    disconnect = frames.disconnect
    frames.data_to_send()
    pull(frames, trigger)
    assert frames.state is EXPECTED[state, trigger]
    if state is not State.OPEN:
        # How the client left is decided once, and it is sent one close frame.
        assert frames.disconnect is disconnect
        assert [data for data in frames.data_to_send() if data] == []
    if frames.state is not State.OPEN:
        assert not frames.send_ping(b"")
        assert receive(frames, text(b"later") + client_frame(Opcode.PONG)) == []


@given(st.lists(st.one_of(st.sampled_from(Trigger), st.binary(max_size=20)), max_size=20))
def test_whatever_happens_the_state_changes_as_the_table_says(steps: list[Trigger | bytes]) -> None:
    frames = frames_of(control_frames=3)
    for step in steps:
        before = frames.state
        if isinstance(step, bytes):
            receive(frames, step)
        else:
            pull(frames, step)
        assert frames.state is before or frames.state in TRANSITIONS[before].values()


@pytest.mark.parametrize(
    ("code", "disconnect"),
    [
        *((code, Disconnect.CLEAN) for code in (1000, 1001, 4000)),
        *((code, Disconnect.ABNORMAL) for code in (1002, 1003, 1007, 1008, 1009, 1011)),
    ],
)
def test_a_client_that_complains_has_not_said_goodbye(code: int, disconnect: Disconnect) -> None:
    frames = frames_of()
    receive(frames, client_frame(Opcode.CLOSE, CloseFrame(code, "").serialize()))
    assert frames.disconnect is disconnect


@pytest.mark.parametrize(
    ("data", "disconnect"),
    [
        (CLOSE, Disconnect.CLEAN),
        # The client's close frame came before this side failed the WebSocket.
        (client_frame(Opcode.TEXT, b"a", fin=False) + CLOSE, Disconnect.CLEAN),
        (text(b"\xff") + CLOSE, Disconnect.CLEAN),
        (UNKNOWN, None),
        (UNKNOWN + CLOSE, None),
        (text(b"\xff"), None),
    ],
)
def test_who_ended_it_is_told_by_the_first_close_frame(
    data: bytes, disconnect: Disconnect | None
) -> None:
    frames = frames_of()
    receive(frames, data)
    frames.abort()
    frames.connection_lost()
    assert frames.disconnect is disconnect


def test_a_connection_that_breaks_is_no_goodbye_unless_this_side_cut_it() -> None:
    broken, cut, sent_away = frames_of(), frames_of(), frames_of()
    cut.abort()
    sent_away.close(1012, "")
    receive(sent_away, CLOSE)
    for frames in (broken, cut, sent_away):
        frames.connection_lost()
    assert broken.disconnect is Disconnect.ABNORMAL
    assert (cut.disconnect, sent_away.disconnect) == (None, None)
