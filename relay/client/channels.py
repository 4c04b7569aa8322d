"""Keeps a WebSocket to a kernel open, and carries the session's messages over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from relay.client.backoff import Backoff
from relay.client.errors import ConnectionLost, when_connected
from relay.client.kernel_session import KernelSession
from relay.client.settings import Settings
from relay.client.sockets import Socket
from relay.errors import AgentError, RelayError

log = logging.getLogger(__name__)

_STABLE_AFTER: Final = 5.0
"""Seconds after which a connection's end does not count as a failed try, even without messages."""

Dial: TypeAlias = Callable[[str], Awaitable[Socket]]
"""Opens a WebSocket that starts at a position; "" starts at the session's own."""


class Channels:
    """The successive WebSockets of one session. `run` must run as a task."""

    def __init__(
        self,
        session: KernelSession,
        dial: Dial,
        settings: Settings,
        jitter: Callable[[], float],
    ) -> None:
        self.connections = 0
        """WebSockets that were opened."""
        self._session = session
        self._dial = dial
        self._settings = settings
        self._backoff = Backoff(settings, jitter)
        self._unsent = asyncio.Event()
        self._room = asyncio.Event()
        self._logged_full = False
        self._was_open = False
        session.outbox.on_unsent = self._unsent.set
        session.on_room = self._room.set

    async def run(self) -> None:
        """Stay connected from the session's first use until reconnecting cannot help."""
        # Not before the first use, since messages replayed from a position would be dropped.
        await self._unsent.wait()
        try:
            await self._stay()
        except RelayError as error:
            self._session.fail(error)

    async def _stay(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._once()
            except AgentError as error:
                if loop.time() - began > _STABLE_AFTER and self._was_open:
                    self._backoff.succeeded()
                delay = self._backoff.delay(loop.time(), error)
                log.info("%s Retrying in %.1f s.", error.message, delay)
                await asyncio.sleep(delay)

    async def _once(self) -> None:
        """Use one WebSocket to its end. Raises the error that ended it."""
        self._was_open = False
        received = self._session.tracker.received
        try:
            socket = await self._dial("" if received is None else str(received))
        except RelayError as error:
            raise when_connected(error) if self.connections else error from None
        self._was_open = True
        self.connections += 1
        self._session.outbox.reconnected()
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(socket), name="relay client: send")
                ended = await self._receive(socket)
                sender.cancel()
        finally:
            await socket.close()
        raise ended

    async def _send(self, socket: Socket) -> None:
        while True:
            self._unsent.clear()
            while (payload := self._session.outbox.next_unsent()) is not None:
                try:
                    await socket.send(payload)
                except ConnectionLost:
                    # `_receive` fails too, and the next connection sends the payload again.
                    return
            await self._unsent.wait()

    async def _receive(self, socket: Socket) -> RelayError:
        """Receive until an error; it is returned, since the task group would wrap it."""
        while True:
            await self._have_room()
            try:
                self._session.receive(await socket.receive())
            except RelayError as error:
                return error
            self._backoff.succeeded()

    async def _have_room(self) -> None:
        """Wait while the script has too much to read; the relay keeps the rest in the journal."""
        tracker = self._session.tracker
        while tracker.held_bytes > self._settings.queue_bytes:
            if not self._logged_full:
                self._logged_full = True
                log.info("%d bytes wait to be read (queue_bytes)", tracker.held_bytes)
            self._room.clear()
            await self._room.wait()
