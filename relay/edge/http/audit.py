"""What a worker has for the audit log: a note per decision, which the parent writes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from relay.auth import audit
from relay.auth.audit import AuditEvent, AuditNote, event_for
from relay.config import AuditSettings
from relay.edge.http.context import AuthorizedRequest, Outcome, RequestContext
from relay.errors import AuditFailed
from relay.log import clean
from relay.routing.table import MatchedRoute, PathParameters, Route

WriteAudit = Callable[[AuditNote | None], Awaitable[bool]]
"""Has the parent write a note, and tells whether it and all before it are in the file; None writes
nothing.

Raises ``ConnectionError`` where there is no parent any more: there is no answer then either."""


class _Made(NamedTuple):
    """The ids that a response tells of."""

    kernel_id: str = ""
    kernelspec: str = ""
    session_id: str = ""


_NOTHING_MADE: Final = _Made()


class AuditTrail:
    """Turns requests and their outcomes into notes."""

    def __init__(
        self,
        settings: AuditSettings,
        write: WriteAudit,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._on = settings.file is not None
        self._required = settings.required
        self._write = write
        self._clock = clock

    async def works(self) -> bool:
        """Return whether the log can be written, or there is none."""
        return not self._on or await self._write(None)

    async def require(self, route: Route) -> None:
        """Raise `AuditFailed` where the route leaves a line, has to, and none can be written."""
        if self._required and route.audit and not await self.works():
            raise _failed()

    async def channels_opened(self, context: AuthorizedRequest) -> None:
        """Note that channels are about to open.

        Raises `AuditFailed` where they may not without a line.
        """
        status = HTTPStatus.SWITCHING_PROTOCOLS
        if not await self._note(context, AuditEvent.CHANNELS_OPENED, status) and self._required:
            raise _failed()

    async def answered(self, context: RequestContext, outcome: Outcome) -> None:
        """Note what became of a request, before its client learns it.

        Channels are noted when they open, and when the relay ends them.
        """
        revoked, status = outcome.revoked, outcome.response.status
        if revoked is not None:
            event = AuditEvent.CHANNELS_ENDED
            await self._note(context, event, revoked.close_code, reason=revoked.message)
            return
        outside = context.known_identity is not None and not context.admitted_cluster
        noted = event_for(_act(context.matched_route), status, outside=outside)
        if noted is not None and status != HTTPStatus.SWITCHING_PROTOCOLS:
            made = _made(context.matched_route, outcome.response)
            await self._note(context, noted, status, reason=outcome.reason, made=made)

    async def failed(self, context: RequestContext) -> None:
        """Note a request that ended in an error which nobody foresaw."""
        error = web.Response(status=HTTPStatus.INTERNAL_SERVER_ERROR)
        await self.answered(context, Outcome(error))

    async def _note(
        self,
        context: RequestContext,
        event: AuditEvent,
        status: int,
        *,
        reason: str = "",
        made: _Made = _NOTHING_MADE,
    ) -> bool:
        """Have a line written; return whether it is."""
        if not self._on:
            return True
        matched = context.matched_route
        named = PathParameters() if matched is None else matched.parameters
        note = AuditNote(
            time=self._clock(),
            event=event,
            **audit.identity_fields(context.known_identity),
            address=context.address,
            method=context.request.method,
            cluster=context.named_cluster,
            kind="" if matched is None else matched.route.name,
            kernel_id=made.kernel_id or named.kernel_id,
            kernelspec=made.kernelspec,
            session_id=made.session_id or named.session_id,
            user=named.user,
            request_id=context.request_id,
            status=status,
            # A client may have had a say in it.
            reason=clean(reason),
        )
        return await self._write(note)


def _act(matched: MatchedRoute | None) -> AuditEvent | None:
    """Return the event that a success on this route is logged as."""
    return AuditEvent(matched.route.audit) if matched is not None and matched.route.audit else None


def _failed() -> AuditFailed:
    return AuditFailed("The audit log cannot be written (audit.required).", retry_after=1)


class _Kernel(msgspec.Struct):
    """What an agent's answer says of a kernel."""

    id: str
    name: str


class _Started(msgspec.Struct):
    """A kernel or, with a kernel in it, a session: what an agent's answer to a start says."""

    id: str
    name: str = ""
    kernel: _Kernel | None = None


def _made(matched: MatchedRoute | None, response: web.StreamResponse) -> _Made:
    """Return what a response to a request that starts a kernel tells of."""
    body = response.body if isinstance(response, web.Response) else None
    if matched is None or not matched.route.starts_kernel or not isinstance(body, bytes):
        return _NOTHING_MADE
    try:
        started = msgspec.json.decode(body, type=_Started)
    except ValueError:
        # An error's body, which has no ids.
        return _NOTHING_MADE
    if started.kernel is None:
        return _Made(started.id, started.name)
    return _Made(started.kernel.id, started.kernel.name, started.id)
