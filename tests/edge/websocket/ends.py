"""A pipe and what is at its ends, a browser and agents; and its frames alone."""

from __future__ import annotations

import re
import struct

from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode

from relay.bridge.control import Detach, Position
from relay.bridge.records import (
    RecordKind,
    frames_record,
    number_record,
    read_message,
    read_number,
    read_struct,
)
from relay.config import EdgeLimits, WebSocketSettings
from relay.edge.websocket.client_frames import ClientFrames, ClientMessage, Pong, Violation
from relay.edge.websocket.pipe import Pipe
from relay.metrics import EdgeMetrics
from tests.fakes import Agent, Browser, FakeTransport, client_frame

START = Position("e1", 10)
PROOF, PING, PONG_TIMEOUT = 0.2, 25.0, 60.0


def opened(*, any_text: bool = False, **limits: int) -> tuple[Pipe, Browser]:
    """A client that has been let in."""
    transport = FakeTransport()
    settings = WebSocketSettings(
        ping_interval=PING, pong_timeout=PONG_TIMEOUT, proof_interval=PROOF
    )
    traffic = EdgeMetrics.local().traffic("alpha")
    pipe = Pipe(transport, EdgeLimits(**limits), settings, traffic, any_text=any_text)
    transport.set_protocol(pipe)
    return pipe, Browser(transport)


def linked(*, any_text: bool = False, **limits: int) -> tuple[Pipe, Browser, Agent]:
    """A client with a kernel."""
    pipe, browser = opened(any_text=any_text, **limits)
    agent = Agent.attached(START)
    pipe.bind(agent.link)
    return pipe, browser, agent


def relinked(pipe: Pipe, acknowledged: int = 0, position: Position | None = None) -> Agent:
    """The next agent takes over."""
    agent = Agent.attached(position or pipe.position or START, acknowledged)
    pipe.bind(agent.link)
    return agent


def submitted(agent: Agent) -> list[tuple[int, bool, bytes]]:
    """The client messages that came to the agent."""
    return [
        (number, is_text, bytes(payload))
        for number, is_text, payload in (
            read_message(payload)
            for kind, payload in agent.received()
            if kind is RecordKind.MESSAGE
        )
    ]


def proofs(agent: Agent) -> list[int]:
    return [read_number(payload) for kind, payload in agent.received() if kind is RecordKind.PROVED]


def farewell(agent: Agent) -> Detach:
    """The last thing that the agent heard before the edge hung up."""
    assert agent.transport.is_closing()
    kind, payload = agent.received()[-1]
    assert kind is RecordKind.DETACH
    return read_struct(payload, Detach)


def without_pings(data: bytes) -> bytes:
    return re.sub(rb"\x89\x08.{8}", b"", data, flags=re.DOTALL)


def output(seq: int, fragment: int = 0, frames: bytes = b"\x81\x01x") -> bytes:
    return frames_record(seq, fragment, [frames])


def acknowledge(number: int) -> bytes:
    return number_record(RecordKind.ACK, number)


def close_of(frame: Frame) -> tuple[int, str]:
    assert frame.opcode is Opcode.CLOSE
    close = CloseFrame.parse(frame.data)
    return int(close.code), close.reason


def pings(browser: Browser) -> list[bytes]:
    return [bytes(f.data) for f in browser.received() if f.opcode is Opcode.PING]


def seq(number: int) -> bytes:
    return struct.pack("<Q", number)


def pong(data: bytes) -> bytes:
    return client_frame(Opcode.PONG, data)


# WebSocket frames without a pipe

CLOSE = client_frame(Opcode.CLOSE, CloseFrame(1000, "").serialize())
UNKNOWN = client_frame(3)
"""A frame of no opcode that there is."""


def frames_of(**limits: int) -> ClientFrames:
    return ClientFrames(EdgeLimits(**limits))


def receive(frames: ClientFrames, data: bytes) -> list[ClientMessage | Pong | Violation]:
    return list(frames.receive(data, 0.0))
