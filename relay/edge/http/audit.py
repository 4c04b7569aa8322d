"""What a worker has for the audit log: a note per decision, told to the parent, which writes it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from relay.auth import audit
from relay.auth.audit import AuditEvent, AuditNote
from relay.config import AuditSettings
from relay.errors import AuditFailed, RelayError
from relay.log import clean
from relay.model import Identity
from relay.routing.routes import STARTING, Kind, Route

TOPIC: Final = "audit"
"""Under which the parent is told."""
_OPEN: Final = 101

Tell = Callable[[bytes], Awaitable[bool]]
"""Has the parent write a note; whether it, and all before it, is in the file. Nothing asks only.

Raises ``ConnectionError`` where there is no parent any more: there is no answer then either."""


class AuditedRequest:
    """What a request turned out to ask for, as far as it came: for metrics and the audit log."""

    def __init__(self, request: web.BaseRequest, request_id: str, address: str) -> None:
        self.request = request
        self.request_id = request_id
        self.address = address
        """Where it comes from; a trusted proxy's word counts."""
        self.identity: Identity | None = None
        self.wanted = ""
        """The cluster that it names, if there is one of that name."""
        self.cluster = ""
        """The same once it is clear that its sender may know of it."""
        self.path: tuple[str, ...] = ()
        """Below the cluster."""
        self.route: Route | None = None
        self.reason = ""
        """Why it was refused, in the words that its sender reads."""
        self.ended: RelayError | None = None
        """Why the relay ended what was open already: its sender may no longer."""

    @property
    def kind(self) -> str:
        """What it asks for; empty for one that did not come so far."""
        return "" if self.route is None else self.route.kind.value


class AuditTrail:
    """Turns requests and what came of them into notes."""

    def __init__(
        self,
        settings: AuditSettings,
        tell: Tell,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._on = settings.file is not None
        self._required = settings.required
        self._tell = tell
        self._clock = clock

    async def works(self) -> bool:
        """Whether the log can be written, or there is none."""
        return not self._on or await self._tell(b"")

    async def require(self, route: Route) -> None:
        """Raise `AuditFailed` where this leaves a line, has to, and none can be written."""
        if self._required and audit.act(route.kind) is not None and not await self.works():
            raise _failed()

    async def opened(self, asked: AuditedRequest) -> None:
        """Channels are about to open. Raises `AuditFailed` where they may not without a line."""
        if not await self._note(asked, AuditEvent.CHANNELS_OPENED, _OPEN) and self._required:
            raise _failed()

    async def answered(
        self, asked: AuditedRequest, status: int, response: web.StreamResponse | None
    ) -> None:
        """A request is about to be answered, or has ended. Channels are noted when they open."""
        if asked.ended is not None:
            asked.reason = asked.ended.message
            await self._note(asked, AuditEvent.CHANNELS_ENDED, asked.ended.close_code)
            return
        outside = asked.identity is not None and not asked.cluster
        event = audit.judge(asked.kind, status, outside=outside)
        if event is not None and status != _OPEN:
            await self._note(asked, event, status, response)

    async def _note(
        self,
        asked: AuditedRequest,
        event: AuditEvent,
        status: int,
        response: web.StreamResponse | None = None,
    ) -> bool:
        """Have a line written; whether it is."""
        if not self._on:
            return True
        route = asked.route
        kernel_id, kernelspec, session_id = _made(route, response)
        note = AuditNote(
            time=self._clock(),
            event=event,
            **audit.who(asked.identity),
            address=asked.address,
            method=asked.request.method,
            cluster=asked.cluster or asked.wanted,
            kind=asked.kind,
            kernel_id=kernel_id or (route and route.kernel_id) or "",
            kernelspec=kernelspec,
            session_id=session_id or (route and route.session_id) or "",
            user=(route and route.user) or "",
            request_id=asked.request_id,
            status=status,
            # A client may have had a say in it, and it is to fit into one message.
            reason=clean(asked.reason),
        )
        return await self._tell(msgspec.msgpack.encode(note))


def _failed() -> AuditFailed:
    return AuditFailed("The audit log cannot be written (audit.required).", retry_after=1)


class _Kernel(msgspec.Struct):
    """What an agent's answer says of a kernel."""

    id: str
    name: str


class _Session(msgspec.Struct):
    """What an agent's answer says of a session."""

    id: str
    kernel: _Kernel


def _made(route: Route | None, response: web.StreamResponse | None) -> tuple[str, str, str]:
    """The ids of the kernel, its kernelspec and the session that an answer tells of."""
    body = response.body if isinstance(response, web.Response) else None
    if route is None or route.kind not in STARTING or not isinstance(body, bytes):
        return "", "", ""
    try:
        if route.kind is Kind.START:
            kernel = msgspec.json.decode(body, type=_Kernel)
            return kernel.id, kernel.name, ""
        session = msgspec.json.decode(body, type=_Session)
    except ValueError:
        # An error's body, which has neither.
        return "", "", ""
    return session.kernel.id, session.kernel.name, session.id
