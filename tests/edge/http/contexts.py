"""Requests at the stages of the edge's pipeline, as tests of what comes behind it need them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from relay.auth.credentials import PresentedCredentials
from relay.auth.policy import Action, Rights
from relay.edge.caller import Caller
from relay.edge.http.context import AddressedRequest, AuthorizedRequest, RequestContext
from relay.model import Identity, Principal
from relay.routing.paths import parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import Scope

ALICE = Identity(principal=Principal("token", "alice"), via="token", credential="abc")
RIGHTS = Rights(dict.fromkeys(Action))
CALLER = Caller(ALICE.principal, RIGHTS)


def request(
    method: str = "GET", path: str = "/", body: bytes = b"", version: Any = HttpVersion11
) -> web.Request:
    payload = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    payload.feed_data(body)
    payload.feed_eof()
    return make_mocked_request(method, path, payload=payload, version=version)


def received(asked: web.Request | None = None) -> RequestContext:
    """A request that was read, and no more."""
    return RequestContext(
        request=asked or request(), request_id="r1", address="192.0.2.1", channels_only=False
    )


def addressed(cluster: str, path: str = "/", asked: web.Request | None = None) -> AddressedRequest:
    """Alice's request for a cluster, of which it is not known yet whether she may know of it."""
    return AddressedRequest(
        **received(asked).facts(),
        target=parse_target(path),
        prefix="",
        path_token=None,
        credentials=PresentedCredentials("T"),
        identity=ALICE,
        cluster=cluster,
    )


def authorized(
    method: str, path: str, asked: web.Request | None = None, **changed: Any
) -> AuthorizedRequest:
    """Alice's request for ``path`` below the cluster alpha, which she may send."""
    target = parse_target(path)
    facts = addressed("alpha", path, asked or request(method, path)).facts()
    return AuthorizedRequest(
        **facts | changed,
        matched=ROUTES.match(Scope.CLUSTER, method, target.segments),
        caller=CALLER,
    )
