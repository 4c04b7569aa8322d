"""What the edge has to know of a JupyterHub, from its settings and from what the Hub gave it.

A Hub tells each service that it starts all there is to know, in ``JUPYTERHUB_*`` variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from relay.config.values import Count, FilePath, Name, Seconds, SecondsOrZero, SecretFile

PREFIX: Final = "JUPYTERHUB_"
"""Of the variables' names. One of them is the service's token: no kernel ever sees any."""
ANY_SERVICE: Final = "access:services"
"""The scope of whoever may use every service."""
_A_MINUTE: Final = 60
# Nothing that needs an escape, and no segment that begins with a dot.
_BASE_URL: Final = re.compile(r"(?:/[A-Za-z0-9_~@-][A-Za-z0-9._~@-]*)*")


def check_api_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is a plain address of an API."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http(s)://host:port/hub/api")
    if "@" in parts.netloc or "?" in url or "#" in url or not (url.isascii() and url.isprintable()):
        raise ValueError("expected nothing but scheme, host, port and path")


def check_access_scope(scope: str) -> None:
    """Raise ``ValueError`` unless ``scope`` is that of access to services."""
    if scope != ANY_SERVICE and not scope.startswith(f"{ANY_SERVICE}!service="):
        raise ValueError(f"expected {ANY_SERVICE}!service=<name>")


def check_base_url(path: str) -> None:
    """Raise ``ValueError`` unless ``path`` is "" or segments that look the same to everybody."""
    if _BASE_URL.fullmatch(path) is None:
        raise ValueError("expected a path as /services/relay, without a slash at its end")


BaseUrl = Annotated[str, Meta(max_length=255, extra={"check": check_base_url})]
AccessScope = Annotated[str, Meta(max_length=255, extra={"check": check_access_scope})]


class JupyterHubSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JupyterHub's users and services, who show its tokens; called ``jupyterhub``.

    What has no default is taken from the variables that the Hub gives to its services.
    """

    api_url: Annotated[str, Meta(extra={"check": check_api_url})] | None = None
    """The Hub's API, as ``http://hub:8081/hub/api``; by default ``$JUPYTERHUB_API_URL``."""
    ca: FilePath | None = None
    """PEM file: the authorities that the certificate of an ``https`` API may come from; by default
    the system's."""
    service_name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{1,100}\Z")] | None = None
    """What this service is called at the Hub; by default ``$JUPYTERHUB_SERVICE_NAME``."""
    access_scopes: list[AccessScope] = []
    """A token needs one of these scopes, exactly so, or ``access:services``; by default those of
    ``$JUPYTERHUB_OAUTH_ACCESS_SCOPES``, else ``access:services!service=<service_name>``."""
    api_token_file: SecretFile | None = None
    """File with the service's own token, to report activity; by default ``$JUPYTERHUB_API_TOKEN``.
    At the Hub it needs the scope ``users:activity``."""
    scopes: dict[Name, Name] = {}
    """The Hub's scopes that limit a token here: the name at the Hub, and the scope that rules name.
    With any set, a token that has none of them is refused."""
    cache: Annotated[float, Meta(gt=0, le=_A_MINUTE)] = 30.0
    """Seconds for which the Hub's word on a token is taken without asking again; at most 60. Open
    WebSockets are looked at as often."""
    cache_unknown: Annotated[float, Meta(ge=0, le=_A_MINUTE)] = 5.0
    """Seconds for which a token that the Hub refused stays refused without asking again."""
    cache_size: Count = 10_000
    """Tokens whose answers are kept, of each kind; beyond, the one that was asked for longest ago
    is forgotten."""
    timeout: Seconds = 5.0
    """Seconds for the Hub's whole answer, and the wait for a turn to ask; beyond: 503."""
    max_requests: Count = 10
    """Requests that one worker has under way at the Hub; whoever comes then waits for a turn."""
    activity_interval: SecondsOrZero = 60.0
    """Seconds between reports of who has a kernel that works; 0: none."""


class HubAccess(NamedTuple):
    """All that it takes to ask a Hub."""

    api_url: str
    """Without a slash at the end."""
    access_scopes: frozenset[str]
    """One of these is enough."""
    token: str
    """The service's own; empty where nothing is reported."""

    @classmethod
    def read(cls, settings: JupyterHubSettings, environ: Mapping[str, str]) -> HubAccess:
        """Put settings and variables together.

        Raises ``ValueError``, which begins with the setting's name.
        """
        url = settings.api_url or environ.get(f"{PREFIX}API_URL")
        if not url:
            raise ValueError(f"api_url: set it, or ${PREFIX}API_URL")
        check_api_url(url)
        return cls(url.rstrip("/"), _access_scopes(settings, environ), _token(settings, environ))


def base_url(written: str, settings: JupyterHubSettings | None, environ: Mapping[str, str]) -> str:
    """The path in front of all others: as ``written``, else that which the Hub's proxy sends.

    Raises ``ValueError``.
    """
    if written or settings is None:
        return written
    prefix = environ.get(f"{PREFIX}SERVICE_PREFIX", "").rstrip("/")
    try:
        check_base_url(prefix)
    except ValueError as error:
        raise ValueError(f"base_url: ${PREFIX}SERVICE_PREFIX: {error}") from None
    return prefix


def _access_scopes(settings: JupyterHubSettings, environ: Mapping[str, str]) -> frozenset[str]:
    if settings.access_scopes:
        return frozenset(settings.access_scopes)
    name = f"{PREFIX}OAUTH_ACCESS_SCOPES"
    written = environ.get(name) or environ.get(f"{PREFIX}OAUTH_SCOPES")
    if written and settings.service_name is None:
        try:
            scopes = msgspec.json.decode(written, type=frozenset[str])
            for scope in scopes:
                check_access_scope(scope)
        except ValueError as error:
            raise ValueError(f"access_scopes: ${name}: {error}") from None
        if scopes:
            return scopes
    service = settings.service_name or environ.get(f"{PREFIX}SERVICE_NAME")
    if not service:
        raise ValueError(f"service_name: set it, or ${PREFIX}SERVICE_NAME")
    return frozenset({f"{ANY_SERVICE}!service={service}"})


def _token(settings: JupyterHubSettings, environ: Mapping[str, str]) -> str:
    if not settings.activity_interval:
        return ""
    if settings.api_token_file is None:
        token = environ.get(f"{PREFIX}API_TOKEN", "")
    else:
        try:
            token = Path(settings.api_token_file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"api_token_file: {error}") from error
    token = token.strip()
    if not token:
        raise ValueError(f"api_token_file: set it, or ${PREFIX}API_TOKEN, or activity_interval: 0")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("api_token_file: this is no token")
    return token
