"""The holder's unix socket: agents attach clients here and ask for interrupts, restarts, the end.

A connection's first record says what it is: `Attach` makes it one client's channels, anything
else an agent's line for calls, on which the kernel's `Status` is sent whenever it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import structlog

from relay.auth.ownership import Grant
from relay.bridge.control import Attach, Call, Failure, GrantChange, Result, Status
from relay.bridge.openings import AGENT, HOLDER, read_opening, refusal_record
from relay.bridge.records import RecordError, RecordKind, struct_record
from relay.errors import BadRequest, Forbidden, OtherVersion, RelayError
from relay.holder.broker.broker import Broker
from relay.holder.serve.client import ChannelLimits, ClientReader
from relay.holder.serve.journal_reader import JournalReader
from relay.streams import peer_uid, read_record

log = structlog.get_logger(__name__)

_BATCH_BYTES: Final = 256 * 1024
_STATUS_PAUSE: Final = 0.02
"""Seconds in which changes of status are gathered into one record."""

Operation = Callable[[str], Coroutine[None, None, None]]


class HolderServer:
    """Serves one kernel's broker to agents, which are the processes of the OS users ``agents``.

    ``max_record`` in bytes bounds one record from an agent.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        status: Callable[[], Status],
        operate: Operation,
        agents: frozenset[int],
        max_record: int,
        limits: ChannelLimits,
    ) -> None:
        self._broker = broker
        self._status = status
        self._operate = operate
        self._agents = agents
        self._max_record = max_record
        self._limits = limits
        self._version = 0
        self._connected = 0
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._server: asyncio.Server | None = None
        self._waker = asyncio.Event()

    async def listen(self, path: Path) -> None:
        """Serve on ``path``; its group is the agents' where they are another user's."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_BATCH_BYTES)
        path.chmod(0o660)

    def changed(self) -> None:
        """The status has changed: every agent is told, in a moment."""
        self._version += 1
        waker, self._waker = self._waker, asyncio.Event()
        waker.set()

    async def deserted(self, timeout: float) -> None:
        """Wait until everybody has hung up, or ``timeout`` seconds.

        Agents do when they hear that the kernel is gone, clients when they have read the rest.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), timeout)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected += 1
        self._nobody.clear()
        try:
            if peer_uid(writer) not in self._agents:
                log.warning("peer_rejected", uid=peer_uid(writer))
                return
            kind, payload = await read_record(reader, self._max_record)
            if kind is RecordKind.ATTACH:
                attach = read_opening(payload, Attach, AGENT, HOLDER)
                channels = ClientReader(self._broker, writer, attach, self._limits)
                with structlog.contextvars.bound_contextvars(request_id=attach.request_id):
                    log.info("client_attached", link=attach.link)
                    await channels.run(reader, self._max_record)
            elif kind is RecordKind.READ:
                await JournalReader(self._broker, reader, writer).run(payload)
            else:
                await self._serve_line(reader, writer, kind, payload)
        except* (OSError, EOFError):
            # The agent went away; sessions wait for the next one.
            pass
        except* OtherVersion as group:
            problem = str(group.exceptions[0])
            log.warning("version_refused", problem=problem)
            writer.write(refusal_record(problem))
        except* RecordError as group:
            log.warning("malformed_record", problem=str(group.exceptions[0]))
        except* Forbidden:
            # Whoever asks the agent once more hears it there.
            log.info("client_refused")
        finally:
            writer.close()
            self._connected -= 1
            if not self._connected:
                self._nobody.set()

    async def _serve_line(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kind: RecordKind,
        payload: bytes,
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            pusher = tasks.create_task(self._push_status(writer), name="status")
            try:
                while True:
                    if kind is not RecordKind.CALL:
                        msg = f"{kind.name} is not for this connection"
                        raise RecordError(msg)
                    call = read_opening(payload, Call, AGENT, HOLDER)
                    tasks.create_task(self._answer(call, writer), name=f"call {call.op}")
                    kind, payload = await read_record(reader, self._max_record)
            finally:
                pusher.cancel()

    async def _push_status(self, writer: asyncio.StreamWriter) -> None:
        sent = -1
        while True:
            if sent == self._version:
                await self._waker.wait()
                await asyncio.sleep(_STATUS_PAUSE)
            sent = self._version
            writer.write(struct_record(RecordKind.STATUS, self._status()))
            await writer.drain()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        failure = None
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                log.info("agent_request", op=call.op)
                if call.grant is not None:
                    self._grant(call.grant)
                else:
                    await self._operate(call.op)
            except RelayError as error:
                log.warning("agent_request_failed", op=call.op, problem=error.message)
                failure = Failure(error.message, error.reason, error.http_status)
        writer.write(struct_record(RecordKind.RESULT, Result(id=call.id, failure=failure)))

    def _grant(self, granting: GrantChange) -> None:
        try:
            grant = None if granting.action is None else Grant(granting.action)
        except ValueError:
            raise BadRequest("A holder knows no such grant.") from None
        self._broker.inbound.grant(granting.principal, grant)
