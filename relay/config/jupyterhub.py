"""Settings of a JupyterHub, and what they leave to the ``JUPYTERHUB_*`` variables.

JupyterHub sets these variables for each service that it starts.
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
"""Prefix of the variables' names. One of them holds the service's token: kernels get none."""
ANY_SERVICE: Final = "access:services"
"""The scope of those who may use every service."""
_A_MINUTE: Final = 60
# Nothing that needs an escape, and no segment that begins with a dot.
_BASE_URL: Final = re.compile(r"(?:/[A-Za-z0-9_~@-][A-Za-z0-9._~@-]*)*")


def check_api_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is the address of an API, without credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http(s)://host:port/hub/api")
    if "@" in parts.netloc or "?" in url or "#" in url or not (url.isascii() and url.isprintable()):
        raise ValueError("expected only a scheme, a host, a port and a path")


def check_access_scope(scope: str) -> None:
    """Raise ``ValueError`` unless ``scope`` grants access to services."""
    if scope != ANY_SERVICE and not scope.startswith(f"{ANY_SERVICE}!service="):
        raise ValueError(f"expected {ANY_SERVICE}!service=<name>")


def check_base_url(path: str) -> None:
    """Raise ``ValueError`` unless ``path`` is "" or made of segments that need no escape."""
    if _BASE_URL.fullmatch(path) is None:
        raise ValueError("expected a path such as /services/relay, without a slash at its end")


BaseUrl = Annotated[str, Meta(max_length=255, extra={"check": check_base_url})]
AccessScope = Annotated[str, Meta(max_length=255, extra={"check": check_access_scope})]


class JupyterHubSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JupyterHub's users and services, who send its tokens; called ``jupyterhub``.

    Where a setting has no default, it comes from a variable that JupyterHub sets for its services.
    """

    api_url: Annotated[str, Meta(extra={"check": check_api_url})] | None = None
    """The Hub's API, as ``http://hub:8081/hub/api``; by default ``$JUPYTERHUB_API_URL``."""
    ca: FilePath | None = None
    """PEM file: the certificate authorities for an ``https`` API; by default the system's."""
    service_name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{1,100}\Z")] | None = None
    """This service's name at the Hub; by default ``$JUPYTERHUB_SERVICE_NAME``."""
    access_scopes: list[AccessScope] = []
    """A token needs one of these scopes, exactly, or ``access:services``; by default those of
    ``$JUPYTERHUB_OAUTH_ACCESS_SCOPES``, else ``access:services!service=<service_name>``."""
    api_token_file: SecretFile | None = None
    """File with the service's token, to report activity; by default ``$JUPYTERHUB_API_TOKEN``.
    At the Hub it needs the scope ``users:activity``."""
    scopes: dict[Name, Name] = {}
    """The Hub's scopes that limit a token here, each with the scope's name in rules. If there are
    any, a token without them is refused."""
    cache: Annotated[float, Meta(gt=0, le=_A_MINUTE)] = 30.0
    """Seconds for which the Hub's answer about a token is reused; at most 60. Open WebSockets are
    checked as often."""
    cache_unknown: Annotated[float, Meta(ge=0, le=_A_MINUTE)] = 5.0
    """Seconds for which a token that the Hub refused stays refused without another request."""
    cache_size: Count = 10_000
    """Tokens whose answers are kept, accepted and refused ones each; beyond, the least recently
    used one is dropped."""
    timeout: Seconds = 5.0
    """Seconds for the Hub's response, including the wait for a free slot; beyond: 503."""
    max_requests: Count = 10
    """Concurrent requests of one worker to the Hub; further ones wait for a slot."""
    activity_interval: SecondsOrZero = 60.0
    """Seconds between reports of users with active kernels; 0: none."""


class HubAccess(NamedTuple):
    """The values needed to send requests to the Hub."""

    api_url: str
    """Without a slash at the end."""
    access_scopes: frozenset[str]
    """A token needs one of these."""
    token: str
    """The service's own token; empty where nothing is reported."""

    @classmethod
    def read(cls, settings: JupyterHubSettings, environ: Mapping[str, str]) -> HubAccess:
        """Combine settings and variables.

        Raises ``ValueError``; the message begins with the setting's name.
        """
        url = settings.api_url or environ.get(f"{PREFIX}API_URL")
        if not url:
            raise ValueError(f"api_url: set it, or ${PREFIX}API_URL")
        check_api_url(url)
        return cls(url.rstrip("/"), _access_scopes(settings, environ), _token(settings, environ))


def base_url(written: str, settings: JupyterHubSettings | None, environ: Mapping[str, str]) -> str:
    """Return the path in front of all others: ``written``, else the prefix of the Hub's proxy.

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
        raise ValueError("api_token_file: it does not hold a token")
    return token
