"""Open WebSockets and streams, whose callers are authorised again for as long as they are open.

They outlive the request that opened them. So the caller is authorised again when its credential
expires, when an authenticator asks for it or reports a change, and when the policy changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

import structlog

from relay.auth.credentials import PresentedCredentials
from relay.edge.caller import Caller
from relay.errors import Forbidden, RelayError, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity

log = structlog.get_logger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks at what is due. Times are the wall clock's, which may be set."""
_RETRY_INTERVAL: Final = 5.0
"""Seconds until an authenticator that failed is asked again."""

Identify = Callable[[PresentedCredentials, float], Awaitable[Identity]]
Authorize = Callable[[Identity], Caller]
"""Returns the caller by the current policy; raises `RelayError` where it may no longer go on."""


class AuthorizedStream:
    """An open WebSocket or streamed answer, and whether its caller may go on with it."""

    def __init__(
        self,
        identity: Identity,
        authorize: Authorize,
        caller: Caller,
        log_fields: Mapping[str, object],
    ) -> None:
        self.identity = identity
        self.caller = caller
        """The caller that agents are told of; changes with its rights."""
        self.revoked: RelayError | None = None
        """Why it had to end."""
        self.log_fields = log_fields
        self._authorize = authorize
        self._on_revoked: Callable[[RelayError], None] = lambda _: None
        self._on_rights_changed: Callable[[], None] = lambda: None

    def subscribe(
        self, on_revoked: Callable[[RelayError], None], on_rights_changed: Callable[[], None]
    ) -> None:
        """Call ``on_revoked`` when it must end, and ``on_rights_changed`` when `caller` changed.

        At once, where it had to end before.
        """
        self._on_revoked, self._on_rights_changed = on_revoked, on_rights_changed
        if self.revoked is not None:
            on_revoked(self.revoked)

    def reauthorize(self, identity: Identity) -> RelayError | None:
        """Go on with ``identity``; return why that is not possible, if it is not."""
        if identity.principal != self.identity.principal:
            return Unauthorized("the credential is somebody else's now")
        try:
            caller = self._authorize(identity)
        except RelayError:
            # In one form, whether it is forbidden or not even known any more.
            return Forbidden("no longer allowed")
        self.identity = identity
        if caller != self.caller:
            self.caller = caller
            log.info("rights_changed", **self.log_fields)
            self._on_rights_changed()
        return None

    def revoke(self, error: RelayError) -> None:
        """End it."""
        self.revoked = error
        self._on_revoked(error)


class _Credential:
    """The open streams of callers who presented the same credentials."""

    def __init__(self, presented: PresentedCredentials) -> None:
        self.presented = presented
        self.streams: set[AuthorizedStream] = set()
        self.due = -math.inf
        """When they are authorised next, in Unix seconds."""
        self.busy = False


class Reauthorizer:
    """Authorises a worker's open streams again."""

    def __init__(
        self,
        identify: Identify,
        metrics: EdgeMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identify = identify
        self._metrics = metrics
        self._clock = clock
        self._credentials: dict[PresentedCredentials, _Credential] = {}
        self._wake = asyncio.Event()

    @contextlib.contextmanager
    def watch(self, presented: PresentedCredentials, stream: AuthorizedStream) -> Iterator[None]:
        """Keep ``stream`` authorised for the duration of the block; ``presented`` opened it."""
        credential = self._credentials.setdefault(presented, _Credential(presented))
        credential.streams.add(stream)
        # A change while it was being opened has not reached it.
        credential.due = -math.inf
        try:
            yield
        finally:
            credential.streams.discard(stream)
            if not credential.streams:
                self._credentials.pop(presented, None)

    def reauthorize_all(self) -> None:
        """Authorise every stream again, now: something has changed."""
        for credential in self._credentials.values():
            credential.due = -math.inf
        self._wake.set()

    async def run(self) -> None:
        """Authorise what is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                now = self._clock()
                for credential in list(self._credentials.values()):
                    if credential.due <= now and not credential.busy:
                        credential.busy = True
                        tasks.create_task(
                            self._revalidate(credential), name="revalidate a credential"
                        )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._wake.wait()

    async def _revalidate(self, credential: _Credential) -> None:
        credential.due = math.inf
        try:
            due = await self._reauthorize(credential)
        finally:
            credential.busy = False
        # Unless another change came meanwhile.
        credential.due = min(credential.due, due)

    async def _reauthorize(self, credential: _Credential) -> float:
        """Return when to do it next, in Unix seconds."""
        now = self._clock()
        try:
            identity = await self._identify(credential.presented, now)
        except Unauthorized:
            for stream in list(credential.streams):
                self._revoke(stream, _gone(stream, now))
            return math.inf
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            log.warning("authenticator_unavailable", problem=str(error))
            return self._keep(credential, now)
        for stream in list(credential.streams):
            problem = stream.reauthorize(identity)
            if problem is not None:
                self._revoke(stream, problem)
        return min(identity.expires, now + identity.recheck)

    def _keep(self, credential: _Credential, now: float) -> float:
        """Keep streams open until the identities that are known expire."""
        for stream in list(credential.streams):
            if stream.identity.expires <= now:
                self._revoke(stream, _gone(stream, now))
        return now + _RETRY_INTERVAL

    def _revoke(self, stream: AuthorizedStream, error: RelayError) -> None:
        if stream.revoked is not None:
            return
        log.info(
            "access_revoked", code=error.close_code, problem=error.message, **stream.log_fields
        )
        self._metrics.sent_away.labels(error.reason.lower()).inc()
        stream.revoke(error)


def _gone(stream: AuthorizedStream, now: float) -> Unauthorized:
    expired = stream.identity.expires <= now
    return Unauthorized("the credential has expired" if expired else "the credential was revoked")
