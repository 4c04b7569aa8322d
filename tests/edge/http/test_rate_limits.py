from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from relay import limits
from relay.config import ConnectionSettings, LoginSettings, ProxySettings, QuotaSettings
from relay.edge.council import Lease, Refused
from relay.edge.http.rate_limits import AdmissionControl
from relay.edge.listener.acceptor import ClientConnection
from relay.edge.quotas import Claim, Lasting, Quotas
from relay.errors import Conflict, RateLimited, RelayError, TooMany, Unauthorized
from relay.model import Identity, Principal

ADA = Principal("mtls", "ada")
IDENTITY = Identity(principal=ADA, via="mtls", expires=100.0)


class Parent:
    """A council without a socket between."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quotas = Quotas(
            ConnectionSettings(),
            QuotaSettings(user_sockets=1, user_requests=1.0, user_burst=2),
            LoginSettings(failures=2, window=10.0),
        )

    async def count(self, claim: Claim) -> None:
        refusal = self.quotas.take(claim, self.now)
        if refusal is not None:
            raise Refused(refusal)

    async def hold(self, claim: Lasting) -> Lease:
        await self.count(claim)
        return Lease(lambda: self.quotas.free(claim))


def door(parent: Parent, **proxies: Any) -> AdmissionControl:
    council: Any = parent
    return AdmissionControl(council, ProxySettings(**proxies), clock=lambda: parent.now)


def request(
    address: str = "192.0.2.1", visitor: ClientConnection | None = None, **headers: str
) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    protocol = Mock(visitor=visitor or ClientConnection(address))
    return make_mocked_request("GET", "/", headers=names, protocol=protocol)


async def wrong(at: AdmissionControl, asked: Any) -> RelayError:
    with pytest.raises(RelayError) as caught:
        async with at.counting_failures(asked):
            raise Unauthorized("a valid token is required")
    return caught.value


async def test_an_address_may_be_wrong_so_often() -> None:
    parent = Parent()
    at = door(parent)
    limits.counts.clear()
    for _ in range(2):
        assert isinstance(await wrong(at, request()), Unauthorized)
    parent.now = 2.5
    error = await wrong(at, request())
    assert isinstance(error, RateLimited)
    assert error.retry_after == 8
    assert "logins.failures" in error.message
    assert limits.counts == {"logins.failures": 1}
    # Another address, and whoever is right, does not feel it.
    assert isinstance(await wrong(at, request("192.0.2.2")), Unauthorized)
    async with at.counting_failures(request()):
        pass
    parent.now = 10.0
    assert isinstance(await wrong(at, request()), Unauthorized)


async def test_other_errors_are_no_failed_logins() -> None:
    at = door(Parent())
    for _ in range(5):
        with pytest.raises(Conflict):
            async with at.counting_failures(request()):
                raise Conflict("no")
    assert isinstance(await wrong(at, request()), Unauthorized)


async def test_a_network_of_ipv6_is_one_address() -> None:
    at = door(Parent())
    for number in range(2):
        assert isinstance(await wrong(at, request(f"2001:db8::{number}")), Unauthorized)
    assert isinstance(await wrong(at, request("2001:db8::ffff:1")), RateLimited)
    assert isinstance(await wrong(at, request("2001:db8:0:1::1")), Unauthorized)


async def test_a_header_helps_nobody_past_it_but_a_proxy() -> None:
    at, trusting = door(Parent()), door(Parent(), forwarded=["192.0.2.1"])
    errors = [
        await wrong(at, request(X_Forwarded_For=f"198.51.100.{number}")) for number in range(4)
    ]
    assert [type(each) for each in errors] == [Unauthorized] * 2 + [RateLimited] * 2
    for number in range(4):
        asked = request(X_Forwarded_For=f"198.51.100.{number}", Forwarded="for=203.0.113.1")
        assert trusting.address(asked) == f"198.51.100.{number}"
        assert isinstance(await wrong(trusting, asked), Unauthorized)


async def test_requests_and_sockets_of_a_principal() -> None:
    parent = Parent()
    at = door(parent)
    for _ in range(2):
        await at.admit(ADA, "alpha")
    with pytest.raises(RateLimited, match=r"\(quotas.user_requests\)") as caught:
        await at.admit(ADA, "alpha")
    assert caught.value.retry_after == 1
    await at.admit(Principal("token", "ada"), "alpha")
    with await at.socket(ADA, "alpha"):
        with pytest.raises(TooMany, match=r"\(quotas.user_sockets\)"):
            await at.socket(ADA, "alpha")
        (await at.socket(Principal("token", "ada"), "alpha")).free()
    (await at.socket(ADA, "alpha")).free()


def certified(identity: Identity | None) -> ClientConnection:
    visitor = ClientConnection("192.0.2.1")
    visitor.expect_certificate(lambda _: identity)
    visitor.identity = identity
    return visitor


def test_who_a_certificate_says_it_is() -> None:
    parent = Parent()
    at = door(parent)
    assert at.certified(request()) is None
    assert at.certified(request(visitor=certified(IDENTITY))) == IDENTITY
    with pytest.raises(Unauthorized, match="nobody's"):
        at.certified(request(visitor=certified(None)))
    # It was good when the connection began.
    parent.now = 100.0
    with pytest.raises(Unauthorized, match="expired"):
        at.certified(request(visitor=certified(IDENTITY)))
