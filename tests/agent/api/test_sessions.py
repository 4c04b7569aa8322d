from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from relay.agent.api.access import KernelAccess
from relay.agent.api.sessions import JupyterSessions, KernelChoice, NewSession, SessionChange
from relay.agent.api.start_request import StartBody
from relay.auth.ownership import Grant, KernelOwnership
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.errors import AgentUnavailable, BadRequest, Conflict, Forbidden, NotFound
from relay.model import KernelModel, Principal

ADA, BOB = Principal("token", "ada"), Principal("token", "bob")


class FakeKernels:
    """Holders and starts in one: kernels that are nothing but their ids."""

    def __init__(self) -> None:
        self.running: dict[str, Any] = {}
        self.bodies: list[StartBody] = []

    async def all(self, wanted: Callable[[KernelOwnership], bool]) -> list[Any]:
        return [line for line in self.running.values() if wanted(line.ownership)]

    def ownership(self, kernel_id: str) -> KernelOwnership | None:
        return self.running[kernel_id].ownership if kernel_id in self.running else None

    def exists(self, kernel_id: str) -> bool:
        return kernel_id in self.running

    async def get(self, kernel_id: str) -> Any:
        if kernel_id not in self.running:
            raise NotFound("no such kernel")
        return self.running[kernel_id]

    async def stop(self, kernel_id: str, request_id: str) -> None:
        await self.get(kernel_id)
        del self.running[kernel_id]

    async def start(self, body: StartBody, ticket: Ticket) -> Any:
        self.bodies.append(body)
        kernel_id = body.kernel_id or ticket.kernel or ""
        model = KernelModel(kernel_id, body.name or "python3", "1970", "idle", 0)
        line = SimpleNamespace(
            model=model,
            kernel_folder=SimpleNamespace(kernel_id=kernel_id),
            ownership=KernelOwnership(owner=str(ticket.principal), kernelspec=model.name),
        )
        found = self.running.setdefault(kernel_id, line)
        if found.ownership.owner != line.ownership.owner:
            raise Conflict("taken")
        return found


@pytest.fixture
def kernels() -> FakeKernels:
    return FakeKernels()


@pytest.fixture
def sessions(tmp_path: Path, kernels: FakeKernels) -> JupyterSessions:
    return make(tmp_path, kernels)


def make(folder: Path, kernels: FakeKernels) -> JupyterSessions:
    fake: Any = kernels
    return JupyterSessions(folder / "sessions", KernelAccess(fake), fake)


def ticket(principal: Principal = ADA, *, without: str = "", admin: bool = False) -> Ticket:
    left_out = {without} | (set() if admin else {"admin"})
    return Ticket(
        principal=principal,
        cluster="alpha",
        kernel=str(uuid.uuid4()),
        rights=Rights(dict.fromkeys(action for action in Action if action not in left_out)),
        request_id="r",
    )


def new(path: str = "a.ipynb", **kernel: Any) -> NewSession:
    return NewSession(path=path, type="notebook", name="a", kernel=KernelChoice(**kernel))


async def test_a_session_comes_with_a_kernel(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    shown = ticket()
    model = await sessions.create(new(name="ir"), shown)
    assert model["kernel"].id == shown.kernel
    assert model["kernel"].name == "ir"
    assert (model["path"], model["type"], model["name"]) == ("a.ipynb", "notebook", "a")
    assert model["notebook"] == {"path": "a.ipynb", "name": "a"}
    assert kernels.bodies[0].path == "a.ipynb"
    assert await sessions.all(ticket()) == [model] == [await sessions.get(model["id"], ticket())]


async def test_only_notebooks_have_the_old_key(sessions: JupyterSessions) -> None:
    model = await sessions.create(NewSession(path="c", type="console"), ticket())
    assert "notebook" not in model
    assert model["name"] == ""


async def test_a_path_keeps_its_session(sessions: JupyterSessions, kernels: FakeKernels) -> None:
    first = await sessions.create(new(), ticket())
    assert await sessions.create(new(), ticket()) == first
    assert len(kernels.running) == 1


async def test_two_people_may_use_the_same_path(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    first = await sessions.create(new(), ticket(ADA))
    second = await sessions.create(new(), ticket(BOB))
    assert first["id"] != second["id"]
    assert len(kernels.running) == 2


async def test_a_session_can_be_made_for_a_kernel_that_runs(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    first = await sessions.create(new("a"), ticket())
    second = await sessions.create(new("b", id=first["kernel"].id), ticket())
    assert second["kernel"].id == first["kernel"].id
    assert len(kernels.running) == 1


async def test_a_kernel_that_does_not_run_is_refused(sessions: JupyterSessions) -> None:
    with pytest.raises(BadRequest):
        await sessions.create(new(id="a-b-c-d-e"), ticket())
    assert await sessions.all(ticket()) == []


async def test_requests_at_the_same_moment_make_one_session(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    models = await asyncio.gather(*(sessions.create(new(), ticket()) for _ in range(5)))
    assert len({model["id"] for model in models}) == 1
    assert len(kernels.running) == 1


async def test_a_session_whose_kernel_does_not_end_is_still_there(
    sessions: JupyterSessions, kernels: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await sessions.create(new(), ticket())

    async def fail(kernel_id: str, request_id: str) -> None:
        raise AgentUnavailable("the holder went away")

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "stop", fail)
        with pytest.raises(AgentUnavailable):
            await sessions.delete(model["id"], ticket())
    await sessions.delete(model["id"], ticket())
    assert await sessions.all(ticket()) == []


async def test_a_start_that_is_repeated_makes_one_session(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    shown = ticket()
    await kernels.start(StartBody(), shown)  # an agent that died before it noted the session
    model = await sessions.create(new(), shown)
    assert model["kernel"].id == shown.kernel
    assert len(kernels.running) == 1


async def test_a_session_is_renamed(sessions: JupyterSessions) -> None:
    before = await sessions.create(new(), ticket())
    change = SessionChange(path="b.ipynb", name="b")
    after = await sessions.change(before["id"], change, ticket())
    assert (after["path"], after["name"], after["kernel"]) == ("b.ipynb", "b", before["kernel"])
    assert await sessions.get(before["id"], ticket()) == after


async def test_a_session_takes_another_kernel_and_ends_the_one_it_had(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    before = await sessions.create(new(), ticket())
    after = await sessions.change(
        before["id"], SessionChange(kernel=KernelChoice(name="ir")), ticket()
    )
    assert after["id"] == before["id"]
    assert list(kernels.running) == [after["kernel"].id]
    assert after["kernel"].name == "ir"


async def test_the_end_of_a_session_is_its_kernels(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    model = await sessions.create(new(), ticket())
    await sessions.delete(model["id"], ticket())
    assert kernels.running == {}
    assert await sessions.all(ticket()) == []
    with pytest.raises(NotFound):
        await sessions.delete(model["id"], ticket())


async def test_a_session_does_not_outlive_its_kernel(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    gone = await sessions.create(new("gone"), ticket())
    stays = await sessions.create(new("stays"), ticket())
    del kernels.running[gone["kernel"].id]
    assert [each["id"] for each in await sessions.all(ticket())] == [stays["id"]]
    for ask in (
        sessions.get(gone["id"], ticket()),
        sessions.change(gone["id"], SessionChange(), ticket()),
    ):
        with pytest.raises(NotFound):
            await ask
    # The path is free again.
    assert (await sessions.create(new("gone"), ticket()))["id"] != gone["id"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}'])
async def test_a_damaged_file_is_no_session(
    tmp_path: Path, sessions: JupyterSessions, content: bytes
) -> None:
    session_id = str(uuid.uuid4())
    (tmp_path / "sessions" / f"{session_id}.json").write_bytes(content)
    assert await sessions.all(ticket()) == []
    with pytest.raises(NotFound):
        await sessions.get(session_id, ticket())


async def test_agents_share_their_sessions(tmp_path: Path, kernels: FakeKernels) -> None:
    one, two = (make(tmp_path, kernels) for _ in range(2))
    model = await one.create(new(), ticket())
    assert await two.all(ticket()) == [model]
    await two.delete(model["id"], ticket())
    assert await one.all(ticket()) == []


# Whose they are


async def test_others_sessions_are_not_there(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    model = await sessions.create(new(), ticket(ADA))
    assert await sessions.all(ticket(BOB)) == []
    for ask in (
        sessions.get(model["id"], ticket(BOB)),
        sessions.change(model["id"], SessionChange(path="b"), ticket(BOB)),
        sessions.delete(model["id"], ticket(BOB)),
    ):
        with pytest.raises(NotFound, match="There is no such session"):
            await ask
    assert await sessions.get(model["id"], ticket(ADA)) == model
    assert list(kernels.running) == [model["kernel"].id]


async def test_an_admin_sees_changes_and_ends_everybodys(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    model = await sessions.create(new(), ticket(ADA))
    admin = ticket(BOB, admin=True)
    assert await sessions.all(admin) == [model] == [await sessions.get(model["id"], admin)]
    assert (await sessions.change(model["id"], SessionChange(name="x"), admin))["name"] == "x"
    await sessions.delete(model["id"], admin)
    assert kernels.running == {}


@pytest.mark.parametrize(("name", "error"), [(None, BadRequest), ("ir", Conflict)])
async def test_nobody_gets_at_anothers_kernel_by_naming_it(
    sessions: JupyterSessions, kernels: FakeKernels, name: str | None, error: type[Exception]
) -> None:
    hers = await sessions.create(new(), ticket(ADA))
    his = await sessions.create(new(), ticket(BOB))
    choice = KernelChoice(id=hers["kernel"].id, name=name)
    body = NewSession(path="b", type="notebook", kernel=choice)
    with pytest.raises(error) as caught:
        await sessions.create(body, ticket(BOB))
    with pytest.raises(error):
        await sessions.change(his["id"], SessionChange(kernel=choice), ticket(BOB))
    if error is BadRequest:
        # As for one that is not there.
        with pytest.raises(BadRequest, match=str(caught.value)):
            await sessions.create(new("b", id="a-b-c-d-e"), ticket(BOB))
    assert await sessions.all(ticket(BOB)) == [his]
    assert len(kernels.running) == 2


async def test_who_may_use_a_kernel_makes_a_session_of_their_own(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    hers = await sessions.create(new(), ticket(ADA))
    line = kernels.running[hers["kernel"].id]
    line.ownership = replace(line.ownership, grants={"token:bob": Grant.USE})
    assert await sessions.all(ticket(BOB)) == []
    his = await sessions.create(new(id=hers["kernel"].id), ticket(BOB))
    assert his["id"] != hers["id"]
    with pytest.raises(Forbidden):
        await sessions.delete(his["id"], ticket(BOB))
    # He goes to a kernel of his own; hers is not ended.
    choice = SessionChange(kernel=KernelChoice(name="ir"))
    await sessions.change(his["id"], choice, ticket(BOB))
    assert len(kernels.running) == 2
    # And what he may not see any more he has no session on.
    await sessions.change(
        his["id"], SessionChange(kernel=KernelChoice(id=hers["kernel"].id)), ticket(BOB)
    )
    line.ownership = replace(line.ownership, grants={})
    assert await sessions.all(ticket(BOB)) == []
    for ask in (sessions.get(his["id"], ticket(BOB)), sessions.delete(his["id"], ticket(BOB))):
        with pytest.raises(NotFound, match="There is no such session"):
            await ask
    assert list(kernels.running) == [hers["kernel"].id]


async def test_who_may_only_view_a_kernel_makes_no_session_on_it(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    hers = await sessions.create(new(), ticket(ADA))
    line = kernels.running[hers["kernel"].id]
    line.ownership = replace(line.ownership, grants={"token:bob": Grant.VIEW})
    with pytest.raises(Forbidden):
        await sessions.create(new(id=hers["kernel"].id), ticket(BOB))
    assert await sessions.all(ticket(BOB)) == []


async def test_who_may_end_no_kernels_ends_none_by_a_session(
    sessions: JupyterSessions, kernels: FakeKernels
) -> None:
    model = await sessions.create(new(), ticket())
    cannot = ticket(without="stop")
    with pytest.raises(Forbidden):
        await sessions.delete(model["id"], cannot)
    await sessions.change(model["id"], SessionChange(kernel=KernelChoice(name="ir")), cannot)
    assert len(kernels.running) == 2
