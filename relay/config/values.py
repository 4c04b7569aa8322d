"""What settings are made of: their types, and the sections that several programs have.

A struct made in code is not checked field by field; ``load`` checks everything it reads. What one
value must be is in its type here; what several must be together is in ``__post_init__``.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from relay.auth.origin import check_origin
from relay.model import Principal
from relay.routing.clusters import check_name
from relay.routing.names import is_kernelspec_name

KIB: Final = 1024
MIB: Final = 1024 * KIB
_UNITS: Final = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
_AUTHENTICATOR: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_PRIVATE: Final = frozenset({"k", "d"})
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)")

THE_RELAYS: Final = ("RELAY_", "JUPYTERHUB_", "JPY_API_TOKEN")
"""Beginnings of the names of variables that are for the relay itself. They may hold tokens, a
Hub's twice over: no kernel gets any, nor does a program that has nothing to do with them."""

OS_USER_NAME: Final = re.compile(r"[a-z_][a-z0-9._-]{0,31}")
"""Names of OS users that a kernel may run as; others exist, and mean trouble somewhere."""
LAST_UID: Final = 2**32 - 2


def read_size(value: object) -> object:
    """Bytes for a text such as ``64 MiB``; anything but text passes unchanged.

    Raises ``ValueError`` for a text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in _UNITS:
        raise ValueError("expected bytes: a number, or one with B, KiB, MiB or GiB behind it")
    return int(match[1]) * _UNITS[match[2]]


def check_agent_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is exactly ``http(s)://host:port``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None:
        raise ValueError("expected http://host:port or https://host:port")
    if url != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError("expected nothing but scheme, host and port")


def check_web_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is an ``http(s)`` URL without anything secret in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected https://host/path")
    if "@" in parts.netloc or parts.fragment or not url.isascii() or not url.isprintable():
        raise ValueError("expected nothing but scheme, host, port, path and query")


def check_fetched(url: str, *, allow_http: bool) -> None:
    """Raise ``ValueError`` unless what comes from ``url`` is from whom it should be.

    ``allow_http`` lets plain HTTP pass within this machine.
    """
    parts = urlsplit(url)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (allow_http and here):
        raise ValueError(f"{url[:200]}: expected https")


def check_visible(text: str) -> None:
    """Raise ``ValueError`` for text that could be shown as something else than it is."""
    if not text.isprintable() or text != text.strip():
        raise ValueError("expected printable characters, and no space at either end")


def check_principal(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` is an authenticator's name, a colon and a user's."""
    principal = Principal.parse(text)
    if _AUTHENTICATOR.fullmatch(principal.authenticator) is None:
        raise ValueError("expected the name of an authenticator before the colon")
    check_visible(principal.subject)


def check_kernelspec(name: str) -> None:
    """Raise ``ValueError`` for what cannot be a kernelspec's name."""
    if not is_kernelspec_name(name):
        raise ValueError("expected a kernelspec's name: letters, digits, '.', '_' and '-'")


def is_secret_jwks(content: bytes) -> bool:
    """Whether there is a key in a JWK Set that is not public (RFC 7518 §6): "k" and "d" have it."""
    try:
        document = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        # Whoever uses it says so.
        return False
    keys = document.get("keys") if isinstance(document, dict) else None
    entries = keys if isinstance(keys, list) else []
    return any(isinstance(key, dict) and not _PRIVATE.isdisjoint(key) for key in entries)


def check_os_user(user: int | str) -> None:
    """Raise ``ValueError`` for what is neither the name of an OS user nor a uid."""
    if isinstance(user, int):
        known = 0 <= user <= LAST_UID
    else:
        known = OS_USER_NAME.fullmatch(user) is not None
    if not known:
        raise ValueError("expected the name of an OS user, or a uid")


# `load` knows three extras: `read` turns what is written into the value, `check` raises ValueError
# for what the type alone cannot exclude, `path` takes a relative path from the right folder.
# `relay check-config` knows one: `secret` is True where a file is for nobody else, or tells so from
# its content.
A_DAY: Final = 86_400
Seconds = Annotated[float, Meta(gt=0, le=A_DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=A_DAY)]
Size = Annotated[int, Meta(ge=1, extra={"read": read_size})]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Meta(ge=0, le=1_000_000)]
LAST_PORT: Final = 65_535
Port = Annotated[int, Meta(ge=0, le=LAST_PORT)]
Host = Annotated[str, Meta(min_length=1, max_length=255)]
FilePath = Annotated[str, Meta(min_length=1, extra={"path": True})]
SecretFile = Annotated[str, Meta(min_length=1, extra={"path": True, "secret": True})]
JwksFile = Annotated[str, Meta(min_length=1, extra={"path": True, "secret": is_secret_jwks})]
ClusterName = Annotated[str, Meta(extra={"check": check_name})]
WebUrl = Annotated[str, Meta(max_length=2000, extra={"check": check_web_url})]
Origin = Annotated[str, Meta(max_length=300, extra={"check": check_origin})]
AgentUrl = Annotated[str, Meta(extra={"check": check_agent_url})]
Name = Annotated[str, Meta(min_length=1, max_length=255, extra={"check": check_visible})]
ClaimPath = Annotated[str, Meta(pattern=r"\A[^\s]{1,255}\Z")]
AuthenticatorName = Annotated[str, Meta(pattern=rf"\A{_AUTHENTICATOR.pattern}\Z")]
PrincipalName = Annotated[str, Meta(max_length=300, extra={"check": check_principal})]
KernelspecName = Annotated[str, Meta(extra={"check": check_kernelspec})]
OsUserName = Annotated[str, Meta(pattern=rf"\A{OS_USER_NAME.pattern}\Z")]
OsUserId = Annotated[int, Meta(ge=0, le=LAST_UID)]
OsUser = Annotated[int | str, Meta(extra={"check": check_os_user})]
EnvironmentName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", max_length=255)]
EnvironmentPattern = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\*?\Z", max_length=255)]


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """One JSON object per line, or lines for people; ``auto``: for people on a terminal only."""


class ListenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address to listen on."""

    host: Host = "127.0.0.1"
    """A name or an IP address; ``0.0.0.0`` or ``::`` is every interface."""
    port: Port
    """A TCP port; 0 takes a free one."""


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Prometheus finds a program's metrics, at ``/metrics``: plain HTTP, to whoever asks."""

    host: Host = "127.0.0.1"
    """A name or an IP address; who can reach it can read all metrics."""
    port: Port | None = None
    """A TCP port; by default there is none, and nothing is served."""


def check_two_ports(https: ListenSettings, wss: ListenSettings) -> None:
    """Raise ``ValueError`` where the two ports are one."""
    if https.port == wss.port != 0 and https.host == wss.host:
        raise ValueError("https and wss need two different ports")
