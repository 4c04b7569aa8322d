from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from relay.agent.api.access import KernelAccess
from relay.agent.holders.client import AdmittedPrincipal
from relay.auth.ownership import Grant, KernelOwnership
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.errors import Forbidden, NotFound
from relay.model import Principal

ALL = (Action.USE, Action.VIEW, Action.STOP, Action.INTERRUPT)
GRANTS = {"token:bob": Grant.USE, "token:cat": Grant.VIEW}


class FakeHolders:
    """One kernel, Ada's, that Bob may use and Cat may view."""

    def __init__(self) -> None:
        self.kernel: KernelOwnership | None = KernelOwnership(
            owner="token:ada", kernelspec="python3", grants=GRANTS
        )
        self.client: Any = SimpleNamespace(status=SimpleNamespace(knows_viewers=True))
        self.stopped: list[tuple[str, str]] = []

    def ownership(self, kernel_id: str) -> KernelOwnership | None:
        return self.kernel if kernel_id == "k" else None

    async def get(self, kernel_id: str) -> Any:
        if kernel_id != "k":
            raise NotFound("no such kernel")
        return self.client

    async def all(self, wanted: Callable[[KernelOwnership], bool]) -> list[Any]:
        return [self.client] if self.kernel is not None and wanted(self.kernel) else []

    async def stop(self, kernel_id: str, request_id: str) -> None:
        self.stopped.append((kernel_id, request_id))


@pytest.fixture
def holders() -> FakeHolders:
    return FakeHolders()


@pytest.fixture
def kernels(holders: FakeHolders) -> KernelAccess:
    fake: Any = holders
    return KernelAccess(fake)


def ticket(name: str, *actions: Action) -> Ticket:
    return Ticket(
        principal=Principal("token", name),
        cluster="alpha",
        kernel="k",
        rights=Rights(dict.fromkeys(actions or ALL)),
        request_id="r1",
    )


ADA, BOB, CAT, EVE = (ticket(name) for name in ("ada", "bob", "cat", "eve"))
ADMIN = ticket("root", Action.ADMIN, *ALL)


async def test_a_kernel_is_there_for_its_owner_for_whom_it_was_granted_and_for_admins(
    kernels: KernelAccess, holders: FakeHolders
) -> None:
    for each in (ADA, BOB, ADMIN):
        assert await kernels.get("k", each, {Action.USE}) is holders.client
        assert await kernels.all(each) == [holders.client]
    assert await kernels.get("k", CAT, {Action.VIEW}) is holders.client
    with pytest.raises(Forbidden):
        await kernels.get("k", CAT, {Action.USE})
    with pytest.raises(NotFound):
        await kernels.get("k", EVE, {Action.USE})
    with pytest.raises(NotFound):
        await kernels.get("other", ADA, {Action.USE})
    assert await kernels.all(EVE) == []
    # An admin's own are not everybody's.
    assert [await kernels.own(each) for each in (ADA, BOB, ADMIN)] == [[holders.client], [], []]


@pytest.mark.parametrize(
    ("who", "admitted"),
    [
        (ADA, AdmittedPrincipal("token:ada")),
        (ADMIN, AdmittedPrincipal("token:root")),
        (BOB, AdmittedPrincipal("token:bob", granted=True)),
        (CAT, AdmittedPrincipal("token:cat", views_only=True, granted=True)),
        (ticket("ada", Action.VIEW), AdmittedPrincipal("token:ada", views_only=True)),
    ],
)
async def test_as_whom_messages_are_read(
    kernels: KernelAccess, holders: FakeHolders, who: Ticket, admitted: AdmittedPrincipal
) -> None:
    assert await kernels.admit("k", who) == (holders.client, admitted)


async def test_a_holder_that_knows_no_viewers_gets_none(
    kernels: KernelAccess, holders: FakeHolders
) -> None:
    holders.client.status.knows_viewers = False
    with pytest.raises(Forbidden, match="older relay"):
        await kernels.admit("k", CAT)
    assert (await kernels.admit("k", BOB))[0] is holders.client


async def test_only_owners_and_admins_administer(
    kernels: KernelAccess, holders: FakeHolders
) -> None:
    for each in (ADA, ADMIN):
        assert await kernels.administrable("k", each) == (holders.client, holders.kernel)
    for each in (BOB, CAT):
        with pytest.raises(Forbidden):
            await kernels.administrable("k", each)
    with pytest.raises(NotFound):
        await kernels.administrable("k", EVE)


async def test_a_kernel_is_ended_by_who_may(kernels: KernelAccess, holders: FakeHolders) -> None:
    with pytest.raises(Forbidden):
        await kernels.stop("k", BOB)
    with pytest.raises(NotFound):
        await kernels.stop("k", EVE)
    assert holders.stopped == []
    await kernels.stop("k", ADA)
    # What a request has started for nothing it may end without the right to end kernels.
    await kernels.discard("k", ticket("ada", Action.START))
    assert holders.stopped == [("k", "r1"), ("k", "r1")]
