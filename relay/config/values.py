"""Types of settings, and the sections that several programs have.

A struct made in code is not checked field by field; ``load`` checks everything it reads. A type
states what one value must be; ``__post_init__`` checks values against each other.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from relay.auth.origin import check_origin
from relay.model import AUTHENTICATOR_NAME, MAX_NAME, Principal, is_name
from relay.routing.clusters import check_name
from relay.routing.names import is_kernelspec_name

KIB: Final = 1024
MIB: Final = 1024 * KIB
_UNITS: Final = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
_PRIVATE: Final = frozenset({"k", "d"})
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)")

RELAY_PREFIXES: Final = ("RELAY_", "JUPYTERHUB_", "JPY_API_TOKEN")
"""Prefixes of variables for the relay itself. They may hold tokens: kernels never get them, nor do
programs that do not need them."""

OS_USER_NAME: Final = re.compile(r"[a-z_][a-z0-9._-]{0,31}")
"""Names of OS users that a kernel may run as; other names are valid but cause trouble."""
LAST_UID: Final = 2**32 - 2


def read_size(value: object) -> object:
    """Read a size such as ``64 MiB`` in bytes; values that are not text pass unchanged.

    Raises ``ValueError`` for text that is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in _UNITS:
        raise ValueError("expected a number of bytes, optionally followed by B, KiB, MiB or GiB")
    return int(match[1]) * _UNITS[match[2]]


def check_agent_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is exactly ``http(s)://host:port``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None:
        raise ValueError("expected http://host:port or https://host:port")
    if url != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError("expected only a scheme, a host and a port")


def check_web_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is an ``http(s)`` URL without credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected https://host/path")
    if "@" in parts.netloc or parts.fragment or not url.isascii() or not url.isprintable():
        raise ValueError("expected only a scheme, a host, a port, a path and a query")


def check_https(url: str, *, allow_http: bool) -> None:
    """Raise ``ValueError`` unless ``url`` is reached over TLS, which authenticates the server.

    ``allow_http`` accepts plain HTTP on the loopback interface.
    """
    parts = urlsplit(url)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (allow_http and here):
        raise ValueError(f"{url[:200]}: expected https")


def check_visible_name(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` is a name of a user, group, scope or key."""
    if not is_name(text):
        raise ValueError(
            f"expected 1 to {MAX_NAME} printable characters without a space at either end"
        )


def check_principal(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` is ``authenticator:user``."""
    principal = Principal.parse(text)
    if AUTHENTICATOR_NAME.fullmatch(principal.authenticator) is None:
        raise ValueError("expected the name of an authenticator before the colon")
    check_visible_name(principal.subject)


def check_kernelspec(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` can be the name of a kernelspec."""
    if not is_kernelspec_name(name):
        raise ValueError("expected a kernelspec's name: letters, digits, '.', '_' and '-'")


def is_secret_jwks(content: bytes) -> bool:
    """Whether a JWK Set contains a secret or private key (RFC 7518 §6): a member "k" or "d"."""
    try:
        document = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        # Reported by the code that uses the keys.
        return False
    keys = document.get("keys") if isinstance(document, dict) else None
    entries = keys if isinstance(keys, list) else []
    return any(isinstance(key, dict) and not _PRIVATE.isdisjoint(key) for key in entries)


def check_os_user(user: int | str) -> None:
    """Raise ``ValueError`` unless ``user`` is the name of an OS user or a uid."""
    if isinstance(user, int):
        known = 0 <= user <= LAST_UID
    else:
        known = OS_USER_NAME.fullmatch(user) is not None
    if not known:
        raise ValueError("expected the name of an OS user, or a uid")


# Extras of `load`: `read` converts the written value, `check` raises ValueError for values that
# the type alone cannot exclude, `path` resolves a relative path.
# An extra of `relay check-config`: `secret` is True for a file that only its owner may read, or a
# function that decides it by the file's content.
SECONDS_PER_DAY: Final = 86_400
Seconds = Annotated[float, Meta(gt=0, le=SECONDS_PER_DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=SECONDS_PER_DAY)]
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
Name = Annotated[str, Meta(extra={"check": check_visible_name})]
ClaimPath = Annotated[str, Meta(pattern=r"\A[^\s]{1,255}\Z")]
AuthenticatorName = Annotated[str, Meta(pattern=rf"\A{AUTHENTICATOR_NAME.pattern}\Z")]
PrincipalName = Annotated[str, Meta(max_length=300, extra={"check": check_principal})]
KernelspecName = Annotated[str, Meta(extra={"check": check_kernelspec})]
OsUserName = Annotated[str, Meta(pattern=rf"\A{OS_USER_NAME.pattern}\Z")]
OsUserId = Annotated[int, Meta(ge=0, le=LAST_UID)]
OsUser = Annotated[int | str, Meta(extra={"check": check_os_user})]
EnvironmentName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", max_length=255)]
EnvironmentPattern = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\*?\Z", max_length=255)]


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logging to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """One JSON object per line, or lines for people; ``auto``: for people on a terminal only."""


class ListenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address to listen on."""

    host: Host = "127.0.0.1"
    """A host name or an IP address; ``0.0.0.0`` or ``::`` means every interface."""
    port: Port
    """A TCP port; 0 takes a free one."""


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of ``/metrics`` for Prometheus: plain HTTP, without authentication."""

    host: Host = "127.0.0.1"
    """A host name or an IP address; everybody who can reach it can read the metrics."""
    port: Port | None = None
    """A TCP port; by default there is none, and nothing is served."""


def check_distinct_ports(https: ListenSettings, wss: ListenSettings) -> None:
    """Raise ``ValueError`` where both listeners have the same address."""
    if https.port == wss.port != 0 and https.host == wss.host:
        raise ValueError("https and wss need different ports")
