from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.agent import launched
from relay.agent.launched import OtherUsers
from relay.agent.orders import Done, Order, close, receive, send
from relay.agent.spawn import Quarters
from relay.agent.users import OsUser, OsUsers
from relay.config import AgentConfig, AgentTls, LaunchAs, ListenSettings
from relay.errors import AgentUnavailable, Conflict, Forbidden, RelayError
from relay.model import Principal
from relay.registry import Place, kernels_folder

AGENT = OsUser("relay", 54001, 54001, "/", "")
ALICE = OsUser("alice", os.geteuid(), 54002, "/home/alice", "/bin/zsh")
OWNER = Principal("token", "alice")


class Users(OsUsers):
    def of(self, principal: Principal) -> OsUser:
        if principal != OWNER:
            raise Forbidden("launch_as")
        return ALICE


class Launcher:
    """The other end: notes orders, and answers as it is told."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.orders: list[tuple[Order, int]] = []
        self.answer: Callable[[Order], list[Done]] = lambda order: [Done(id=order.id, pid=7)]

    def read(self) -> None:
        order, files = receive(self.channel, Order)
        assert order is not None
        self.orders.append((order, len(files)))
        close(files)
        for done in self.answer(order):
            send(self.channel, done)


class Bench:
    def __init__(self, folder: Path) -> None:
        config = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=0),
            state_dir=str(folder),
            runtime_dir=str(folder / "run"),
            user="relay",
            launch_as=LaunchAs(),
            tls=AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem"),
            ticket_keys=["a.pub"],
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (ours, theirs):
            each.settimeout(0)
        self.launcher = Launcher(theirs)
        asyncio.get_running_loop().add_reader(theirs, self.launcher.read)
        self.starter = OtherUsers(config, Users(LaunchAs(), AGENT), ours)
        self.sockets = ours, theirs
        self.place = Place(kernels_folder(folder, "alpha") / "k")
        self.place.folder.mkdir(parents=True)

    def close(self) -> None:
        for each in self.sockets:
            if each.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(each)
            each.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


async def test_a_folder_is_asked_for_by_principal(bench: Bench, tmp_path: Path) -> None:
    quarters = await bench.starter.prepare(bench.place, OWNER)
    assert quarters == Quarters(
        runtime=tmp_path / "run" / str(ALICE.uid),
        environment={
            "HOME": "/home/alice",
            "USER": "alice",
            "LOGNAME": "alice",
            "SHELL": "/bin/zsh",
        },
        working_folder="/",
    )
    ((order, files),) = bench.launcher.orders
    assert (order.op, order.kernel_id, order.owner) == ("prepare", "k", "token:alice")
    assert files == 0


async def test_who_is_nobody_is_not_even_asked_for(bench: Bench) -> None:
    with pytest.raises(Forbidden):
        await bench.starter.prepare(bench.place, Principal("token", "bob"))
    assert bench.launcher.orders == []


async def test_lock_and_log_go_along(bench: Bench) -> None:
    lock = bench.place.try_lock()
    assert lock is not None
    assert await bench.starter.start(bench.place, "token:alice", lock) == 7
    os.close(lock)
    ((order, files),) = bench.launcher.orders
    assert (order.op, files) == ("start", 2)
    assert bench.place.holder_log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"kind": "forbidden", "problem": "no"}, Forbidden),
        ({"kind": "conflict", "problem": "no"}, Conflict),
        ({"kind": "os", "problem": "full", "errno": errno.ENOSPC}, OSError),
    ],
)
async def test_what_the_launcher_refuses_is_refused(
    bench: Bench, answer: dict[str, Any], error: type[Exception]
) -> None:
    bench.launcher.answer = lambda order: [Done(id=order.id, **answer)]
    with pytest.raises(error) as raised:
        await bench.starter.prepare(bench.place, OWNER)
    if isinstance(raised.value, OSError):
        # So that a full disk is a 507, as without a launcher.
        assert raised.value.errno == errno.ENOSPC


async def test_answers_to_others_are_nobodys(bench: Bench) -> None:
    bench.launcher.answer = lambda order: [
        Done(id="of an agent that was killed", kind="forbidden"),
        Done(id=order.id),
        Done(id=order.id, kind="forbidden"),
    ]
    await bench.starter.prepare(bench.place, OWNER)
    bench.launcher.answer = lambda order: [Done(id=order.id)]
    await bench.starter.prepare(bench.place, OWNER)


async def test_a_silent_launcher_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched, "_ANSWER", 0.05)
    bench.launcher.answer = lambda _: []
    with pytest.raises(AgentUnavailable):
        await bench.starter.prepare(bench.place, OWNER)


async def test_without_a_launcher_nothing_starts(bench: Bench) -> None:
    asyncio.get_running_loop().remove_reader(bench.launcher.channel)
    bench.launcher.channel.close()
    with pytest.raises((OSError, RelayError)):
        await bench.starter.prepare(bench.place, OWNER)


async def test_only_the_folders_own_user_is_believed(bench: Bench, tmp_path: Path) -> None:
    assert bench.starter.believes(bench.place, "token:alice")
    for owner in ("token:bob", "alice", "", "oidc:alice"):
        assert not bench.starter.believes(bench.place, owner)
    assert not bench.starter.believes(Place(tmp_path / "nowhere"), "token:alice")


async def test_a_link_in_the_place_of_the_log_is_not_written_to(
    bench: Bench, tmp_path: Path
) -> None:
    bench.place.holder_log.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"holder\.log"):
        await bench.starter.start(bench.place, "token:alice", 0)
    assert not (tmp_path / "target").exists()
    assert bench.launcher.orders == []
