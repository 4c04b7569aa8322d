"""One link to an agent: the connection of an HTTP upgrade that carries records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
import structlog

from relay import limits
from relay.bridge.control import Attach, Attached, Close
from relay.bridge.openings import AGENT, EDGE, read_opening
from relay.bridge.records import (
    RecordError,
    RecordKind,
    RecordReader,
    read_struct,
    record,
    struct_record,
)
from relay.errors import AgentUnavailable, OtherVersion

log = structlog.get_logger(__name__)

_MAX_RECORD: Final = 4 * 1024 * 1024
"""Bytes of one record from an agent, which sends frames in batches of far less."""

RecordHandler = Callable[[RecordKind, bytes], None]


class Link(asyncio.Protocol):
    """An attached link. `bind` says where its records go; until then they wait."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        if connection is None or connection.transport is None:
            msg = "the agent hung up"
            raise ConnectionResetError(msg)
        # Kept: aiohttp closes the connection of a response that nobody holds.
        self._response = response
        self._transport = connection.transport
        self._reader = RecordReader(_MAX_RECORD)
        self._attached: asyncio.Future[Attached] = asyncio.get_running_loop().create_future()
        self._waiting: list[tuple[RecordKind, bytes]] = []
        self._on_record: RecordHandler | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self._on_writable: Callable[[bool], None] = lambda _: None
        self._ping_unanswered = False
        """Whether nothing has come since the last ping."""
        self._paused = False
        """Whether the link is not read from, so that nothing can come."""
        self.lost = False
        """Whether the connection is gone."""
        self._transport.set_protocol(self)

    async def attach(self, attach: Attach) -> None:
        """Ask for the kernel's channels and wait until they are ours.

        Raises `AgentUnavailable` where the agent refuses, and ``ConnectionError``.
        """
        self._transport.write(struct_record(RecordKind.ATTACH, attach))
        await self._attached

    @property
    def attached(self) -> Attached:
        """The answer to `attach`."""
        return self._attached.result()

    def bind(
        self,
        on_record: RecordHandler,
        on_lost: Callable[[], None],
        on_writable: Callable[[bool], None],
    ) -> None:
        """Deliver records from now on, those that came already first."""
        self._on_record, self._on_lost, self._on_writable = on_record, on_lost, on_writable
        waiting, self._waiting = self._waiting, []
        for kind, payload in waiting:
            self._take(kind, payload)
        if self.lost:
            on_lost()
        else:
            self._transport.resume_reading()

    def write(self, record: bytes) -> None:
        """Send a record; one for a lost link is sent again on the next."""
        if not self.lost:
            self._transport.write(record)

    def pause(self) -> None:
        """Read no more for now."""
        self._paused = True
        if not self.lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._paused = self._ping_unanswered = False
        if not self.lost:
            self._transport.resume_reading()

    def keep_watch(self, interval: float) -> None:
        """Ask the agent for a sign of life every ``interval`` seconds; a silent one is gone."""
        if self.lost or self._transport.is_closing():
            return
        if self._ping_unanswered and not self._paused:
            log.warning("link_timeout", setting="upstream.link_ping_interval")
            limits.record("upstream.link_ping_interval")
            self._transport.abort()
            return
        self._ping_unanswered = True
        self._transport.write(record(RecordKind.PING))
        asyncio.get_running_loop().call_later(interval, self.keep_watch, interval)

    def close(self) -> None:
        """Hang up, once what was written is out."""
        # Over TLS records may still come for a while, and what was written leaves bit by bit.
        self._on_record, self._on_lost = lambda _kind, _payload: None, lambda: None
        self._on_writable = lambda _writable: None
        self._transport.close()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Take bytes from the agent."""
        self._ping_unanswered = False
        try:
            for kind, payload in self._reader.feed(data):
                self._take(kind, payload)
        except RecordError as error:
            log.warning("malformed_record", problem=error.message)
            self._transport.abort()

    def _take(self, kind: RecordKind, payload: bytes) -> None:
        if self._on_record is not None:
            self._on_record(kind, payload)
        elif kind in (RecordKind.ATTACHED, RecordKind.CLOSE) and not self._attached.done():
            self._settle(kind, payload)
            # Until somebody takes the records, no more of them.
            self._transport.pause_reading()
        else:
            self._waiting.append((kind, payload))

    def _settle(self, kind: RecordKind, payload: bytes) -> None:
        """Take the answer to `attach`."""
        if kind is RecordKind.CLOSE:
            refusal = AgentUnavailable(read_struct(payload, Close).reason)
            self._attached.set_exception(refusal)
            return
        try:
            self._attached.set_result(read_opening(payload, Attached, AGENT, EDGE))
        except OtherVersion as error:
            log.warning("version_refused", problem=error.message)
            self._attached.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The agent is gone, or its process."""
        self.lost = True
        if not self._attached.done():
            problem = ConnectionResetError("the agent hung up")
            problem.__cause__ = exc
            self._attached.set_exception(problem)
        self._response.close()
        self._on_lost()

    def pause_writing(self) -> None:
        """The agent does not keep up with the client."""
        self._on_writable(False)  # noqa: FBT003 - the state itself

    def resume_writing(self) -> None:
        """The agent has caught up."""
        self._on_writable(True)  # noqa: FBT003 - the state itself
