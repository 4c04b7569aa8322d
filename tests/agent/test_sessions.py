from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.agent.sessions import KernelChoice, NewSession, SessionChange, Sessions
from relay.agent.starts import StartBody
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.errors import AgentUnavailable, BadRequest, NotFound
from relay.model import KernelModel, Principal

ADA, BOB = Principal("token", "ada"), Principal("token", "bob")


class FakeKernels:
    """Holders and starts in one: kernels that are nothing but their ids."""

    def __init__(self) -> None:
        self.running: dict[str, Any] = {}
        self.bodies: list[StartBody] = []

    async def all(self) -> list[Any]:
        return list(self.running.values())

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
        line = SimpleNamespace(model=model, place=SimpleNamespace(kernel_id=kernel_id))
        return self.running.setdefault(kernel_id, line)


@pytest.fixture
def kernels() -> FakeKernels:
    return FakeKernels()


@pytest.fixture
def sessions(tmp_path: Path, kernels: FakeKernels) -> Sessions:
    fake: Any = kernels
    return Sessions(tmp_path / "sessions", fake, fake)


def ticket(principal: Principal = ADA) -> Ticket:
    return Ticket(
        principal=principal,
        cluster="alpha",
        kernel=str(uuid.uuid4()),
        rights=Rights({Action.START: None}),
        request_id="r",
    )


def new(path: str = "a.ipynb", **kernel: Any) -> NewSession:
    return NewSession(path=path, type="notebook", name="a", kernel=KernelChoice(**kernel))


async def test_a_session_comes_with_a_kernel(sessions: Sessions, kernels: FakeKernels) -> None:
    shown = ticket()
    model = await sessions.create(new(name="ir"), shown)
    assert model["kernel"].id == shown.kernel
    assert model["kernel"].name == "ir"
    assert (model["path"], model["type"], model["name"]) == ("a.ipynb", "notebook", "a")
    assert model["notebook"] == {"path": "a.ipynb", "name": "a"}
    assert kernels.bodies[0].path == "a.ipynb"
    assert await sessions.all() == [model] == [await sessions.get(model["id"])]


async def test_only_notebooks_have_the_old_key(sessions: Sessions) -> None:
    model = await sessions.create(NewSession(path="c", type="console"), ticket())
    assert "notebook" not in model
    assert model["name"] == ""


async def test_a_path_keeps_its_session(sessions: Sessions, kernels: FakeKernels) -> None:
    first = await sessions.create(new(), ticket())
    assert await sessions.create(new(), ticket()) == first
    assert len(kernels.running) == 1


async def test_two_people_may_use_the_same_path(sessions: Sessions, kernels: FakeKernels) -> None:
    first = await sessions.create(new(), ticket(ADA))
    second = await sessions.create(new(), ticket(BOB))
    assert first["id"] != second["id"]
    assert len(kernels.running) == 2


async def test_a_session_can_be_made_for_a_kernel_that_runs(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    first = await sessions.create(new("a"), ticket())
    second = await sessions.create(new("b", id=first["kernel"].id), ticket())
    assert second["kernel"].id == first["kernel"].id
    assert len(kernels.running) == 1


async def test_a_kernel_that_does_not_run_is_refused(sessions: Sessions) -> None:
    with pytest.raises(BadRequest):
        await sessions.create(new(id="a-b-c-d-e"), ticket())
    assert await sessions.all() == []


async def test_requests_at_the_same_moment_make_one_session(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    models = await asyncio.gather(*(sessions.create(new(), ticket()) for _ in range(5)))
    assert len({model["id"] for model in models}) == 1
    assert len(kernels.running) == 1


async def test_a_session_whose_kernel_does_not_end_is_still_there(
    sessions: Sessions, kernels: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await sessions.create(new(), ticket())

    async def fail(kernel_id: str, request_id: str) -> None:
        raise AgentUnavailable("the holder went away")

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "stop", fail)
        with pytest.raises(AgentUnavailable):
            await sessions.delete(model["id"], ticket())
    await sessions.delete(model["id"], ticket())
    assert await sessions.all() == []


async def test_a_start_that_is_repeated_makes_one_session(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    shown = ticket()
    await kernels.start(StartBody(), shown)  # an agent that died before it noted the session
    model = await sessions.create(new(), shown)
    assert model["kernel"].id == shown.kernel
    assert len(kernels.running) == 1


async def test_a_session_is_renamed(sessions: Sessions) -> None:
    before = await sessions.create(new(), ticket())
    change = SessionChange(path="b.ipynb", name="b")
    after = await sessions.change(before["id"], change, ticket())
    assert (after["path"], after["name"], after["kernel"]) == ("b.ipynb", "b", before["kernel"])
    assert await sessions.get(before["id"]) == after


async def test_a_session_takes_another_kernel_and_ends_the_one_it_had(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    before = await sessions.create(new(), ticket())
    after = await sessions.change(
        before["id"], SessionChange(kernel=KernelChoice(name="ir")), ticket()
    )
    assert after["id"] == before["id"]
    assert list(kernels.running) == [after["kernel"].id]
    assert after["kernel"].name == "ir"


async def test_the_end_of_a_session_is_its_kernels(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    model = await sessions.create(new(), ticket())
    await sessions.delete(model["id"], ticket())
    assert kernels.running == {}
    assert await sessions.all() == []
    with pytest.raises(NotFound):
        await sessions.delete(model["id"], ticket())


async def test_a_session_does_not_outlive_its_kernel(
    sessions: Sessions, kernels: FakeKernels
) -> None:
    gone = await sessions.create(new("gone"), ticket())
    stays = await sessions.create(new("stays"), ticket())
    del kernels.running[gone["kernel"].id]
    assert [each["id"] for each in await sessions.all()] == [stays["id"]]
    for ask in (sessions.get(gone["id"]), sessions.change(gone["id"], SessionChange(), ticket())):
        with pytest.raises(NotFound):
            await ask
    # The path is free again.
    assert (await sessions.create(new("gone"), ticket()))["id"] != gone["id"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}'])
async def test_a_damaged_file_is_no_session(
    tmp_path: Path, sessions: Sessions, content: bytes
) -> None:
    session_id = str(uuid.uuid4())
    (tmp_path / "sessions" / f"{session_id}.json").write_bytes(content)
    assert await sessions.all() == []
    with pytest.raises(NotFound):
        await sessions.get(session_id)


async def test_agents_share_their_sessions(tmp_path: Path, kernels: FakeKernels) -> None:
    fake: Any = kernels
    one, two = (Sessions(tmp_path / "sessions", fake, fake) for _ in range(2))
    model = await one.create(new(), ticket())
    assert await two.all() == [model]
    await two.delete(model["id"], ticket())
    assert await one.all() == []
