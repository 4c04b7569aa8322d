"""Finds the one credential that a request presents.

Clients send ``Authorization: token T`` (Jupyter), ``Authorization: Bearer T`` (RFC 6750 §2.1) and,
on WebSockets, where browsers can set no header, ``?token=T`` or a subprotocol that holds it
(JEP 121). VS Code sends header and query both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from relay.errors import Unauthorized
from relay.model import Identity

MAX_CREDENTIAL = 8192
"""Characters of the longest accepted credential; JWTs with many groups come near it."""

CONFLICTING_CREDENTIALS = "the request has several credentials that disagree"
TOKEN_PROTOCOL = "v1.token.websocket.jupyter.org"  # noqa: S105 - a name
"""Offered beside ``v1.token.websocket.jupyter.org.<token>``, so that the server can choose a
subprotocol where the client offers no other: browsers require that one is chosen."""


class PresentedCredentials(NamedTuple):
    """Everything in a request, and in its connection, that identifies the client."""

    credential: str | None
    """For the authenticators; ``None`` where there is none."""
    path_token: str | None = None
    """The token in the URL's path."""
    certificate_identity: Identity | None = None
    """The identity of the connection's client certificate, before any alias."""


# A header's trailing space does not survive HTTP parsing, so "token " arrives as "token".
_AUTHORIZATION = re.compile(r"(?:token|bearer)(?: +(.*))?", re.ASCII | re.IGNORECASE | re.DOTALL)
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")


def from_request(
    authorization: Sequence[str],
    query_tokens: Sequence[str],
    protocols: Sequence[str] = (),
    *,
    websocket: bool,
) -> str | None:
    """Return the credential of a request, or ``None`` for an anonymous one.

    ``authorization`` holds the values of every ``Authorization`` header, ``query_tokens`` the
    decoded values of every ``token`` in the query, ``protocols`` the values of every
    ``Sec-WebSocket-Protocol`` header. The latter two count on WebSockets only: on REST query tokens
    are ignored, since URLs end up in logs and in ``Referer``. An empty credential is none:
    Jupyter's gateway client sends ``token `` when it has no token.

    Raises ``Unauthorized`` when a credential is malformed, longer than ``MAX_CREDENTIAL``, or
    differs from another one: choosing one would let a client act under one and be logged under
    another.
    """
    shown = set(_from_headers(authorization))
    if websocket:
        shown.update(_checked(token) for token in query_tokens if token)
        shown.update(_checked(token) for token in _from_protocols(protocols) if token)
    if len(shown) > 1:
        raise Unauthorized(CONFLICTING_CREDENTIALS)
    return shown.pop() if shown else None


def _from_headers(authorization: Sequence[str]) -> Iterator[str]:
    for value in authorization:
        text = value.strip(" \t")
        if not text:
            continue
        found = _AUTHORIZATION.fullmatch(text)
        if found is None:
            raise Unauthorized("unknown authorization scheme: use 'Authorization: Bearer <token>'")
        if found[1]:
            yield _checked(found[1])


def without_token(protocols: Sequence[str]) -> list[str]:
    """Return the subprotocols of all ``protocols`` headers without those that hold a token."""
    return [each for each in _offered(protocols) if not each.startswith(f"{TOKEN_PROTOCOL}.")]


def _from_protocols(protocols: Sequence[str]) -> Iterator[str]:
    for each in _offered(protocols):
        if each.startswith(f"{TOKEN_PROTOCOL}."):
            # Clients write it as encodeURIComponent does.
            yield unquote(each.removeprefix(f"{TOKEN_PROTOCOL}."))


def _offered(protocols: Sequence[str]) -> Iterator[str]:
    for value in protocols:
        yield from (each.strip(" \t") for each in value.split(","))


def _checked(credential: str) -> str:
    if len(credential) > MAX_CREDENTIAL or _CREDENTIAL.fullmatch(credential) is None:
        raise Unauthorized("the credential is malformed")
    return credential
