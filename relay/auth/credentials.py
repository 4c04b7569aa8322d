"""Find the one credential a request shows.

Clients send ``Authorization: token T`` (Jupyter), ``Authorization: Bearer T`` (RFC 6750 §2.1) and,
on WebSockets, where browsers can set no header, ``?token=T``. VS Code sends header and query both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from relay.errors import Unauthorized

MAX_CREDENTIAL = 8192
"""Longest credential that is looked at, in characters; JWTs with many groups come near it."""

# A header's trailing space does not survive HTTP parsing, so "token " arrives as "token".
_AUTHORIZATION = re.compile(r"(?:token|bearer)(?: +(.*))?", re.ASCII | re.IGNORECASE | re.DOTALL)
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")


def from_request(
    authorization: Sequence[str], query_tokens: Sequence[str], *, websocket: bool
) -> str | None:
    """Return the credential of a request, or ``None`` for an anonymous one.

    ``authorization`` holds the values of every ``Authorization`` header, ``query_tokens`` the
    decoded values of every ``token`` in the query. Query tokens count on WebSockets only: on REST
    they are ignored, since URLs end up in logs and in ``Referer``. An empty credential is none:
    Jupyter's gateway client sends ``token `` when it has nothing to show.

    Raises ``Unauthorized`` when a credential cannot be read, is longer than ``MAX_CREDENTIAL``, or
    disagrees with another one: choosing would let a client be judged by one and logged by another.
    """
    shown = set(_from_headers(authorization))
    if websocket:
        shown.update(_checked(token) for token in query_tokens if token)
    if len(shown) > 1:
        raise Unauthorized("the request shows several credentials that disagree")
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


def _checked(credential: str) -> str:
    if len(credential) > MAX_CREDENTIAL or _CREDENTIAL.fullmatch(credential) is None:
        raise Unauthorized("the credential is malformed")
    return credential
