from __future__ import annotations

from typing import Any

import pytest

from relay import limits
from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge.http.rate_limits import RateLimits
from relay.edge.ipc.client import Permit, Refused
from relay.edge.ipc.quotas import QuotaPermit, QuotaRequest, Quotas
from relay.errors import Conflict, RateLimited, RelayError, TooMany, Unauthorized
from relay.model import Principal

ADA = Principal("mtls", "ada")


class Parent:
    """A parent without a socket between."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quotas = Quotas(
            ConnectionSettings(),
            QuotaSettings(user_sockets=1, user_requests=1.0, user_burst=2),
            LoginSettings(failures=2, window=10.0),
        )

    async def call(self, request: QuotaRequest) -> None:
        refusal = self.quotas.acquire(request, self.now)
        if refusal is not None:
            raise Refused(refusal)

    async def acquire(self, permit: QuotaPermit) -> Permit[None]:
        await self.call(permit)
        return Permit(None, lambda: self.quotas.release(permit))


def rate_limits(parent: Parent) -> RateLimits:
    client: Any = parent
    return RateLimits(client)


async def wrong(at: RateLimits, address: str = "192.0.2.1") -> RelayError:
    with pytest.raises(RelayError) as caught:
        async with at.counting_failed_logins(address):
            raise Unauthorized("a valid token is required")
    return caught.value


async def test_an_address_may_be_wrong_so_often() -> None:
    parent = Parent()
    at = rate_limits(parent)
    limits.counts.clear()
    for _ in range(2):
        assert isinstance(await wrong(at), Unauthorized)
    parent.now = 2.5
    error = await wrong(at)
    assert isinstance(error, RateLimited)
    assert error.retry_after == 8
    assert "logins.failures" in error.message
    assert limits.counts == {"logins.failures": 1}
    # Another address, and whoever is right, does not feel it.
    assert isinstance(await wrong(at, "192.0.2.2"), Unauthorized)
    async with at.counting_failed_logins("192.0.2.1"):
        pass
    parent.now = 10.0
    assert isinstance(await wrong(at), Unauthorized)


async def test_other_errors_are_no_failed_logins() -> None:
    at = rate_limits(Parent())
    for _ in range(5):
        with pytest.raises(Conflict):
            async with at.counting_failed_logins("192.0.2.1"):
                raise Conflict("no")
    assert isinstance(await wrong(at), Unauthorized)


async def test_a_network_of_ipv6_is_one_address() -> None:
    at = rate_limits(Parent())
    for number in range(2):
        assert isinstance(await wrong(at, f"2001:db8::{number}"), Unauthorized)
    assert isinstance(await wrong(at, "2001:db8::ffff:1"), RateLimited)
    assert isinstance(await wrong(at, "2001:db8:0:1::1"), Unauthorized)


async def test_requests_and_sockets_of_a_principal() -> None:
    parent = Parent()
    at = rate_limits(parent)
    for _ in range(2):
        await at.count_request(ADA, "alpha")
    with pytest.raises(RateLimited, match=r"\(quotas.user_requests\)") as caught:
        await at.count_request(ADA, "alpha")
    assert caught.value.retry_after == 1
    await at.count_request(Principal("token", "ada"), "alpha")
    with await at.open_socket(ADA, "alpha"):
        with pytest.raises(TooMany, match=r"\(quotas.user_sockets\)"):
            await at.open_socket(ADA, "alpha")
        (await at.open_socket(Principal("token", "ada"), "alpha")).release()
    (await at.open_socket(ADA, "alpha")).release()
