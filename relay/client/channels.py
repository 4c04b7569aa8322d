"""Keeps a kernel's WebSocket open, one after the other, and carries the conversation over them."""

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

_STEADY: Final = 5.0
"""Seconds after which a connection that ends is no failed try, though nothing was said on it."""

Dial: TypeAlias = Callable[[str], Awaitable[Socket]]
"""Opens a WebSocket from a position on, "" for the session's own."""


class Channels:
    """The WebSockets of one conversation. `run` is to be somebody's task."""

    def __init__(
        self,
        conversation: KernelSession,
        dial: Dial,
        settings: Settings,
        dice: Callable[[], float],
    ) -> None:
        self.connections = 0
        """WebSockets that were opened."""
        self._conversation = conversation
        self._dial = dial
        self._settings = settings
        self._backoff = Backoff(settings, dice)
        self._unsent = asyncio.Event()
        self._room = asyncio.Event()
        self._told_to_read = False
        self._was_open = False
        conversation.on_unsent = self._unsent.set
        conversation.on_room = self._room.set

    async def run(self) -> None:
        """Stay connected from the first use on, until there is no sense in it any more."""
        # Not before somebody listens: what is replayed from a position would find nobody.
        await self._unsent.wait()
        try:
            await self._stay()
        except RelayError as error:
            self._conversation.fail(error)

    async def _stay(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._once()
            except AgentError as error:
                if loop.time() - began > _STEADY and self._was_open:
                    self._backoff.succeeded()
                pause = self._backoff.pause(loop.time(), error)
                log.info("%s Again in %.1f s.", error.message, pause)
                await asyncio.sleep(pause)

    async def _once(self) -> None:
        """One WebSocket, to its end. Raises what ended it."""
        self._was_open = False
        received = self._conversation.ledger.received
        try:
            socket = await self._dial("" if received is None else str(received))
        except RelayError as error:
            raise when_connected(error) if self.connections else error from None
        self._was_open = True
        self.connections += 1
        self._conversation.reconnected()
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
            while (payload := self._conversation.next_unsent()) is not None:
                try:
                    await socket.send(payload)
                except ConnectionLost:
                    # Whoever receives hears of it too. The next connection sends it again.
                    return
            await self._unsent.wait()

    async def _receive(self, socket: Socket) -> RelayError:
        """Returned, not raised: the sender's group would wrap it."""
        while True:
            await self._have_room()
            try:
                self._conversation.take(await socket.receive())
            except RelayError as error:
                return error
            self._backoff.succeeded()

    async def _have_room(self) -> None:
        """Read no further than the script does. The relay keeps the rest."""
        ledger = self._conversation.ledger
        while ledger.held_bytes > self._settings.queue_bytes:
            if not self._told_to_read:
                self._told_to_read = True
                log.info("%d bytes wait to be read (queue_bytes)", ledger.held_bytes)
            self._room.clear()
            await self._room.wait()
