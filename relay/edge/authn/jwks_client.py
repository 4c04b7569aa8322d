"""Where the keys of JWTs come from: files, read once, or an issuer that publishes them.

What is published is fetched by one task, at the pace that the configuration allows, whatever comes
in with requests: before the keys are old, and sooner when a token names one that is not there.
Requests use what is there; they wait only where nothing is, or their key is not among it. A fetch
that fails takes nothing away.

A provider may change a key without giving it a new ``kid``: that is noticed when the keys are
fetched the next time for their age.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import ssl
import time
from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

import aiohttp
import structlog
from aiohttp import hdrs

from relay import limits
from relay.auth import jwks
from relay.auth.jwks import Key, KeySet
from relay.config import JwtSettings, KeySettings
from relay.config.values import check_https, check_web_url
from relay.errors import AuthenticatorUnavailable
from relay.metrics import EdgeMetrics

log = structlog.get_logger(__name__)

_DISCOVERY: Final = "/.well-known/openid-configuration"
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])", re.IGNORECASE)
_PROBLEM: Final = 300
"""Characters of an issuer's words that are logged."""
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


class Keys(Protocol):
    """Finds the key for a token."""

    async def find(self, kid: str | None, algorithm: str, /) -> Key | None:
        """As `KeySet.find`. Raises `AuthenticatorUnavailable` while nobody can tell."""
        ...


class Published(NamedTuple):
    """What an issuer publishes: a JWK Set, and for how many seconds it says that it holds."""

    document: bytes
    max_age: float | None


class FileKeys:
    """Keys from files."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    @classmethod
    def read(cls, settings: KeySettings, algorithms: Collection[str]) -> Self:
        """Raises ``OSError`` and ``ValueError``, which name the key that cannot be used."""
        if settings.jwks_file is not None:
            found, problems = jwks.parse(
                Path(settings.jwks_file).read_bytes(), algorithms, secrets=True
            )
            if problems or not found.keys:
                raise ValueError(f"jwks_file: {'; '.join(problems) or 'it has no keys'}")
            return cls(found)
        if settings.secret is not None:
            secret = Path(settings.secret).read_bytes()
            try:
                return cls(KeySet([jwks.from_secret(_without_line_end(secret), algorithms)]))
            except ValueError as error:
                raise ValueError(f"secret: {error}") from error
        keys = []
        for each in settings.pem:
            try:
                keys.append(jwks.from_pem(Path(each.file).read_bytes(), algorithms, each.kid))
            except ValueError as error:
                raise ValueError(f"pem: {each.file}: {error}") from error
        return cls(KeySet(keys))

    async def find(self, kid: str | None, algorithm: str, /) -> Key | None:
        """As `KeySet.find`."""
        return self._keys.find(kid, algorithm)


def _without_line_end(text: bytes) -> bytes:
    return text.removesuffix(b"\n").removesuffix(b"\r")


class FetchedKeys:
    """Keys that an issuer publishes; a context, inside which they are kept fresh."""

    def __init__(
        self,
        name: str,
        settings: JwtSettings,
        fetch: Callable[[], Awaitable[Published]],
        metrics: EdgeMetrics,
    ) -> None:
        """``fetch`` raises ``aiohttp.ClientError``, ``OSError`` or ``ValueError`` in vain."""
        self._name = name
        self._settings = settings.keys
        self._algorithms = settings.algorithms
        self._fetch = fetch
        self._metrics = metrics
        self._keys = KeySet()
        self._problems: list[str] = []
        # In seconds of the loop's clock.
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._trying = False
        self._failing = False
        self._wanted = asyncio.Event()
        self._group = TaskGroup()
        self._task: asyncio.Task[None]
        # Done when the next try is, or the one that is going on.
        self._tried: asyncio.Future[None]

    async def __aenter__(self) -> Self:
        self._metrics.keys_fetched.labels(self._name).set(0)
        self._tried = asyncio.get_running_loop().create_future()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._keep_fresh(), name=f"keys of {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        # What happened outside of the group is none of its errors.
        await self._group.__aexit__(None, None, None)

    async def find(self, kid: str | None, algorithm: str, /) -> Key | None:
        """As `KeySet.find`. Waits for a fetch only where that may bring the key.

        Raises `AuthenticatorUnavailable` where there are no keys to look among.
        """
        key = self._find(kid, algorithm)
        if key is None and await self._another_try():
            key = self._find(kid, algorithm)
        if key is None and not self._are_good():
            raise AuthenticatorUnavailable(
                "The keys that would tell whose token this is are not available just now.",
                retry_after=math.ceil(self._settings.cool_down),
            )
        return key

    def _find(self, kid: str | None, algorithm: str) -> Key | None:
        return self._keys.find(kid, algorithm) if self._are_good() else None

    def _are_good(self) -> bool:
        return _now() - self._fetched_at <= self._settings.keep

    async def _another_try(self) -> bool:
        """Wait for the end of a try; false, at once, where it is too soon for one."""
        if not self._trying:
            if _now() - self._tried_at < self._settings.cool_down:
                limits.record("authentication.jwt.keys.cool_down")
                return False
            self._wanted.set()
        # It is everybody's, and goes on when one of them goes away.
        await asyncio.shield(self._tried)
        return True

    async def _keep_fresh(self) -> None:
        while True:
            self._wanted.clear()
            self._trying, self._tried_at = True, _now()
            pause = await self._try()
            self._trying = False
            done, self._tried = self._tried, asyncio.get_running_loop().create_future()
            done.set_result(None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    async def _try(self) -> float:
        """Seconds until the next try, unless somebody asks for one."""
        self._metrics.key_fetches.labels(self._name).inc()
        try:
            async with asyncio.timeout(self._settings.timeout):
                published = await self._fetch()
            keys, problems = jwks.parse(published.document, self._algorithms)
        except _FAILURES as error:
            self._failed(error)
            return self._settings.cool_down
        self._metrics.keys_fetched.labels(self._name).set(time.time())
        self._fetched_at = _now()
        self._replace(keys, problems)
        lifetime = self._settings.refresh if published.max_age is None else published.max_age
        return max(self._settings.cool_down, min(lifetime, self._settings.refresh))

    def _failed(self, error: Exception) -> None:
        """Count it; the log has the first of a row, and that they are too old to be used."""
        self._metrics.key_fetch_failures.labels(self._name).inc()
        problem = (str(error) or type(error).__name__)[:_PROBLEM]
        if not self._failing:
            log.warning("key_fetch_failed", authenticator=self._name, problem=problem)
        elif not self._are_good() and self._keys.keys:
            log.error("keys_expired", authenticator=self._name, setting="keys.keep")
            limits.record("authentication.jwt.keys.keep")
            self._keys = KeySet()
        self._failing = True

    def _replace(self, keys: KeySet, problems: list[str]) -> None:
        """Use these from now on; the log has what is new about them."""
        kids = [str(key.kid)[:_PROBLEM] for key in keys.keys]
        if self._failing or kids != [str(key.kid)[:_PROBLEM] for key in self._keys.keys]:
            log.info("keys_fetched", authenticator=self._name, kids=kids)
        if problems != self._problems:
            log.warning("keys_skipped", authenticator=self._name, problems=problems)
        self._keys, self._problems, self._failing = keys, problems, False


class JwksEndpoint:
    """Where an issuer publishes its keys; nothing that it answers leads to plain HTTP."""

    def __init__(self, settings: JwtSettings) -> None:
        """Raise ``OSError`` and ``ValueError`` for authorities that cannot be read."""
        self._issuer = settings.issuer
        self._settings = settings.keys
        self._tls = ssl.create_default_context(cafile=settings.keys.ca)

    async def fetch(self) -> Published:
        """Raises ``aiohttp.ClientError``, ``OSError`` and ``ValueError``."""
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A small answer could become any number of bytes.
            auto_decompress=False,
            headers={hdrs.ACCEPT: "application/json", hdrs.ACCEPT_ENCODING: "identity"},
        ) as session:
            url = self._settings.jwks_url or await self._discover(session)
            document, headers = await self._get(session, url)
            found = _MAX_AGE.search(headers.get(hdrs.CACHE_CONTROL, ""))
            return Published(document, float(found[1]) if found else None)

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        """Where the keys are (OpenID Connect Discovery 1.0 §4)."""
        document, _ = await self._get(session, self._issuer.removesuffix("/") + _DISCOVERY)
        told = jwks.read_object(document)
        if told.get("issuer") != self._issuer:
            raise ValueError("the discovery document is another issuer's")
        url = told.get("jwks_uri")
        if not isinstance(url, str):
            raise ValueError("the discovery document names no keys")  # noqa: TRY004 - as above
        check_web_url(url)
        check_https(url, allow_http=self._settings.allow_http)
        return url

    async def _get(
        self, session: aiohttp.ClientSession, url: str
    ) -> tuple[bytes, Mapping[str, str]]:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                raise ValueError(f"{url} was answered with {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._settings.document_bytes:
                    limits.record("authentication.jwt.keys.document_bytes")
                    raise ValueError(f"{url} has more bytes than keys.document_bytes")
            return bytes(body), response.headers


def _now() -> float:
    return asyncio.get_running_loop().time()
