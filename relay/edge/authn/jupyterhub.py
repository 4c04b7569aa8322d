"""JupyterHub: whose a token is, asked at the Hub, and remembered for no longer than a minute.

The only place that speaks to a Hub. Users' tokens go there and nowhere else; of what it answers
only names, groups, scopes and the token's id are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from http import HTTPStatus
from typing import Annotated, Final, Generic, Literal, NamedTuple, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs
from cachetools import TLRUCache
from yarl import URL

from relay import limits
from relay.auth.tokens import PREFIX
from relay.config import JupyterHubSettings
from relay.config.jupyterhub import ANY_SERVICE, HubAccess
from relay.edge.authn.jupyterhub_activity import (
    ActivityReport,
    ActivityReporter,
    HubServer,
    WatchedSocket,
)
from relay.errors import AuthenticatorUnavailable, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal, is_name, jupyter_time

log = structlog.get_logger(__name__)

AUTHENTICATOR: Final = "jupyterhub"
"""The authenticator half of every principal that a Hub's token makes."""
SERVICE: Final = "service:"
"""What the names of services begin with, and those of users may not."""

SETTINGS: Final = "authentication.jupyterhub"
"""Where the settings are."""
_LONGEST_TOKEN: Final = 512
"""Characters. The Hub's own tokens have 32; those of services are whatever was configured."""
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_ANSWER_BYTES: Final = 1024 * 1024
_RETRY_AFTER: Final = 2
_UNKNOWN: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""What Hubs answer to a token that is nobody's, or no longer."""
_NOBODY: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND})
"""What Hubs answer to a report of a server, and of a user, that there is not."""
_FAILURES: Final = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError

T = TypeVar("T")
_Text = Annotated[str, msgspec.Meta(max_length=255)]


class _Model(msgspec.Struct):
    """Who shows a token, as ``GET /user`` says; fields that are not read are not checked."""

    kind: Literal["user", "service"]
    name: str
    scopes: list[str]
    groups: list[_Text] = []
    token_id: _Text | None = None
    """None of Hubs before 5.0."""


class HubUser(Identity, frozen=True, kw_only=True):
    """A user of the Hub, and the server whose token it is."""

    place: HubServer


class _Refused(NamedTuple):
    """The Hub knows the token, and it is not good for this service."""

    why: str


_Word = Identity | _Refused | None
"""What the Hub says of a token; ``None``: nobody's."""


class _Failed(NamedTuple):
    """The Hub did not say."""


class JupyterHub:
    """The authenticator for a Hub's tokens, as a context: in it the Hub can be asked."""

    def __init__(
        self,
        settings: JupyterHubSettings,
        environ: Mapping[str, str],
        metrics: EdgeMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raise ``ValueError``, which begins with the setting's name."""
        self._settings = settings
        self._access = HubAccess.read(settings, environ)
        self._metrics = metrics
        self._clock = clock
        self._tls = _tls(settings.ca)
        # Whatever is thrown at us is never remembered in place of somebody whom the Hub knows.
        self._known: _Memory[Identity] = _Memory(settings.cache, settings.cache_size, clock)
        self._others: _Memory[_Refused | None] = _Memory(
            settings.cache_unknown, settings.cache_size, clock
        )
        self._asking: dict[bytes, asyncio.Task[_Word | _Failed]] = {}
        self._turns = asyncio.Semaphore(settings.max_requests)
        self._failing: set[str] = set()
        self._activity = ActivityReporter(self._report, settings.activity_interval)
        self._reporting: asyncio.Task[None] | None = None
        self._exits = AsyncExitStack()
        self._session: aiohttp.ClientSession
        self._tasks: asyncio.TaskGroup

    @property
    def recheck(self) -> float:
        """Seconds after which a token that something stays open with is to be shown again."""
        return self._settings.cache

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            self._session = await exits.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
                )
            )
            self._tasks = await exits.enter_async_context(asyncio.TaskGroup())
            exits.callback(self._cancel)
            self._exits = exits.pop_all()
        if self._settings.activity_interval:
            self._reporting = self._tasks.create_task(self._activity.run(), name="activity")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    def _cancel(self) -> None:
        for task in (*self._asking.values(), self._reporting):
            if task is not None:
                task.cancel()

    # Whose is it?

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose token this is, or ``None``.

        Raises ``Unauthorized`` for one that is not good for this service, and
        ``AuthenticatorUnavailable`` where the Hub does not say.
        """
        del now  # The Hub knows when its tokens end.
        if not _may_be_the_hubs(credential):
            return None
        word = await self._word(credential)
        if isinstance(word, _Failed):
            msg = "JupyterHub cannot be asked just now."
            raise AuthenticatorUnavailable(msg, retry_after=_RETRY_AFTER)
        if isinstance(word, _Refused):
            raise Unauthorized(word.why)
        return word

    async def _word(self, token: str) -> _Word | _Failed:
        key = hashlib.sha256(token.encode()).digest()
        for memory in (self._known, self._others):
            if (said := memory.get(key)) is not None:
                return said.word
        task = self._asking.get(key)
        if task is None:
            task = self._tasks.create_task(self._ask_once(key, token), name="ask the Hub")
            self._asking[key] = task
        # Whoever leaves does not take the answer along that others wait for.
        return await asyncio.shield(task)

    async def _ask_once(self, key: bytes, token: str) -> _Word | _Failed:
        asked = self._clock()
        try:
            word = await self._ask(token)
        finally:
            del self._asking[key]
        if isinstance(word, Identity):
            self._known[key] = _Said(asked, word)
        elif not isinstance(word, _Failed):
            self._others[key] = _Said(asked, word)
        return word

    async def _ask(self, token: str) -> _Word | _Failed:
        waiting = True
        try:
            async with asyncio.timeout(self._settings.timeout), self._turns:
                waiting = False
                status, body = await self._request("GET", "/user", token)
        except _FAILURES as error:
            if isinstance(error, TimeoutError):
                limits.record(f"{SETTINGS}.{'max_requests' if waiting else 'timeout'}")
            return self._failed("user", str(error) or type(error).__name__)
        if status in _UNKNOWN:
            self._succeeded("user", "unknown")
            return None
        if status != HTTPStatus.OK:
            return self._failed("user", f"status {status}")
        try:
            model = msgspec.json.decode(body, type=_Model)
        except msgspec.MsgspecError as error:
            return self._failed("user", str(error))
        word = self._judge(model)
        self._succeeded("user", "known" if isinstance(word, Identity) else "refused")
        return word

    def _judge(self, model: _Model) -> Identity | _Refused:
        if not is_name(model.name):
            return _Refused("this name cannot be used here")
        if model.kind == "user" and model.name.startswith(SERVICE):
            return _Refused(f"users whose names begin with {SERVICE} cannot be told from services")
        own = frozenset(model.scopes)
        needed = self._access.access_scopes
        if not own & (needed | {ANY_SERVICE}):
            return _Refused(f"the JupyterHub token lacks the scope {' or '.join(sorted(needed))}")
        scopes = frozenset(here for there, here in self._settings.scopes.items() if there in own)
        if self._settings.scopes and not scopes:
            return _Refused(f"the JupyterHub token has no scope of {SETTINGS}.scopes")
        subject = model.name if model.kind == "user" else f"{SERVICE}{model.name}"
        identity = Identity(
            principal=Principal(AUTHENTICATOR, subject),
            via=AUTHENTICATOR,
            groups=frozenset(model.groups),
            scopes=scopes,
            credential=f"{AUTHENTICATOR}:{model.token_id or ''}",
        )
        if model.kind == "service":
            return identity
        place = HubServer(model.name, _server(own, model.name))
        return HubUser(place=place, **msgspec.structs.asdict(identity))

    # Who has a kernel that works?

    def follow(self, identity: Identity, socket: WatchedSocket) -> AbstractContextManager[None]:
        """Report what goes on on an open WebSocket as the activity of its user's server."""
        if isinstance(identity, HubUser) and self._settings.activity_interval:
            return self._activity.watch(identity.place, socket)
        return contextlib.nullcontext()

    async def _report(
        self, place: HubServer, last_activity: float, *, server: bool
    ) -> ActivityReport:
        """Tell the Hub of a user's last activity (Unix seconds), of one server's too if asked."""
        moment = jupyter_time(last_activity)
        body: dict[str, object] = {"last_activity": moment}
        if server:
            body["servers"] = {place.server: {"last_activity": moment}}
        path = f"/users/{quote(place.user, safe='')}/activity"
        try:
            status, _ = await self._request("POST", path, self._access.token, body)
        except _FAILURES as error:
            self._failed("activity", str(error) or type(error).__name__)
            return ActivityReport.FAILED
        if status in _NOBODY:
            self._succeeded("activity", "unknown")
            return ActivityReport.NOBODY
        if status != HTTPStatus.OK:
            self._failed("activity", f"status {status}")
            return ActivityReport.FAILED
        self._succeeded("activity", "known")
        return ActivityReport.TAKEN

    # The Hub.

    async def _request(
        self, method: str, path: str, token: str, body: object = None
    ) -> tuple[int, bytes]:
        """Ask the Hub: its answer's status and body. Raises any of ``_FAILURES``."""
        async with self._session.request(
            method,
            URL(f"{self._access.api_url}{path}", encoded=True),
            headers={hdrs.AUTHORIZATION: f"token {token}", hdrs.CONTENT_TYPE: "application/json"},
            data=None if body is None else msgspec.json.encode(body),
            # Nobody sends a token on to where a redirection says.
            allow_redirects=False,
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > _ANSWER_BYTES:
                    msg = f"an answer of more than {_ANSWER_BYTES} bytes"
                    raise aiohttp.ClientPayloadError(msg)
            return response.status, bytes(answer)

    def _failed(self, what: str, problem: str) -> _Failed:
        """Note that the Hub gave no answer; the log has the first of a row."""
        self._metrics.hub_requests.labels(what, "failed").inc()
        if what not in self._failing:
            log.warning("jupyterhub_unavailable", asked=what, problem=problem)
        self._failing.add(what)
        return _Failed()

    def _succeeded(self, what: str, outcome: str) -> None:
        self._metrics.hub_requests.labels(what, outcome).inc()
        if what in self._failing:
            log.info("jupyterhub_available", asked=what)
        self._failing.discard(what)


class _Said(NamedTuple, Generic[T]):
    """What the Hub said of a token, and when it was asked."""

    asked: float
    word: T


class _Memory(TLRUCache[bytes, _Said[T], float]):
    """What the Hub said of the tokens that were asked for last."""

    def __init__(self, lifetime: float, size: int, clock: Callable[[], float]) -> None:
        # From the question on: nobody knows when the Hub made up its mind.
        super().__init__(size, lambda _key, said, _now: said.asked + lifetime, timer=clock)

    def popitem(self) -> tuple[bytes, _Said[T]]:
        """Make room: what was not asked for longest goes."""
        limits.record(f"{SETTINGS}.cache_size")
        return super().popitem()


def _may_be_the_hubs(credential: str) -> bool:
    """Whether the Hub is asked at all: never about what is another authenticator's for certain."""
    return (
        len(credential) <= _LONGEST_TOKEN
        and not credential.startswith(PREFIX)
        and _JWT.fullmatch(credential) is None
    )


def _server(scopes: frozenset[str], user: str) -> str:
    """The one server that a token was made for, else the user's default server, which is ""."""
    beginning = f"access:servers!server={user}/"
    named = [each.removeprefix(beginning) for each in scopes if each.startswith(beginning)]
    return named[0] if len(named) == 1 else ""


def _tls(ca: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl's errors are among them
        raise ValueError(f"ca: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
