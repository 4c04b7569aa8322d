"""A new holder's broker and a kernel that is a list: what is synthesized, when, and for whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from relay.bridge.control import Attach
from relay.bridge.events import ClientAttached, KernelLaunched, MessageSubmitted, StartReading
from relay.bridge.messages import Channel, Message, parse_header
from relay.bridge.requests import KernelRequest, short_header
from relay.bridge.session_table import SessionLimits
from relay.holder.broker.broker import Broker
from relay.holder.broker.recovery import NOTICE, recover
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal, JournalEntry
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder
from tests.holder.fake_backend import FakeChannel
from tests.virtualtime import virtual

LOST = "RelayReplyLost"
LIMITS = SessionLimits(
    sessions=10, requests=100, repeats=10, lifetime=100.0, anonymous_lifetime=100.0
)
ASKER = Attach(link="l", principal="p", session_id="s")


class Reader:
    """A client that takes no notice."""

    def start(self, action: StartReading) -> None:
        return

    def end(self, code: int, reason: str) -> None:
        return

    def acknowledge(self, number: int) -> None:
        return

    def wake(self) -> None:
        return

    def cut(self, reason: str) -> None:
        return


class Adopter:
    def __init__(self, folder: Path, *left: str, **more: str) -> None:
        """``left`` are ids of requests that the last holder had sent and nothing came of."""
        store = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        store.handle(KernelLaunched(), 0.0)
        store.handle(ClientAttached(1, ASKER), 0.0)
        for number, msg_id in enumerate(left, 1):
            raw = header(msg_id, **more)
            ids = msg_id, "c", "execute_request", more.get("subshell_id", "")
            short = short_header(raw, parse_header(raw))
            store.handle(MessageSubmitted(1, number, Channel.SHELL, *ids, header=short), 0.0)
        store.close()
        store = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        journal = Journal.open(
            folder / "journal", max_bytes=2**20, segment_bytes=2**20, tail_bytes=2**20
        )
        replies = ReplyJournal(folder / "answers", 2**20)
        grants = GrantStore(KernelFolder(folder), 1)
        self.broker = Broker(store, journal, replies, grants, lambda: None)
        self.connection = self.broker.inbound.attach(Reader(), ASKER)
        self.kernel = FakeChannel(self.broker.on_message)

    @property
    def requests(self) -> list[KernelRequest]:
        return list(self.broker.sessions.unfinished)

    @contextlib.asynccontextmanager
    async def adopted(self) -> AsyncIterator[asyncio.Task[None]]:
        """Leaving waits until all is recovered."""
        self.broker.adopt(self.kernel, NOTICE)
        async with asyncio.TaskGroup() as tasks:
            yield tasks.create_task(recover(self.broker))

    def ask(self, msg_id: str) -> None:
        message = Message(Channel.SHELL, header(msg_id), b"{}", b"{}", b"{}")
        self.broker.inbound.submit(self.connection, int(msg_id.encode().hex(), 16), message)

    def said(self) -> list[tuple[str, str, Any]]:
        """Type, parent's id and content's first value of each entry, in order."""
        entries: tuple[JournalEntry, ...] = self.broker.outbound.journal.read(0, 2**20).entries
        found = []
        for entry in entries:
            head, parent, _, content = map(json.loads, entry.parts[:4])
            value = content.get("ename") or content.get("execution_state") or content.get("name")
            found.append((head["msg_type"], parent.get("msg_id", ""), value))
        return found

    @property
    def state(self) -> str:
        return self.broker.activity.state

    def requests_sent(self) -> list[str]:
        return [
            each["msg_id"] for _, each in self.kernel.sent if each["msg_type"] == "execute_request"
        ]


def header(msg_id: str, **more: str) -> bytes:
    fields = {"msg_id": msg_id, "session": "c", "msg_type": "execute_request", **more}
    return json.dumps(fields).encode()


@virtual
async def test_replies_and_idles_that_nobody_read_are_made_up_for(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a", "b")
    async with adopter.adopted():
        await asyncio.sleep(60)
        # The kernel is busy: it may still answer.
        assert adopter.said() == [("stream", "a", "stderr")]
        assert adopter.state == "busy"
        assert await adopter.kernel.answer_probes(Channel.SHELL) == 3
    assert adopter.said() == [
        ("stream", "a", "stderr"),
        ("execute_reply", "a", LOST),
        ("status", "a", "idle"),
        ("execute_reply", "b", LOST),
        ("status", "b", "idle"),
        ("status", "", "idle"),
    ]
    assert adopter.state == "idle"
    assert list(adopter.requests) == []


@virtual
async def test_what_comes_after_all_is_not_made_up(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a", "b")
    async with adopter.adopted():
        await asyncio.sleep(1)
        a, b = json.loads(header("a")), json.loads(header("b"))
        adopter.kernel.say(Channel.SHELL, "execute_reply", a, status="ok", name="real")
        adopter.kernel.say(Channel.IOPUB, "status", a, execution_state="idle")
        adopter.kernel.say(Channel.SHELL, "execute_reply", b, status="ok", name="real")
        await adopter.kernel.answer_probes(Channel.SHELL)
    assert adopter.said()[1:] == [
        ("execute_reply", "a", "real"),
        ("status", "a", "idle"),
        ("execute_reply", "b", "real"),
        # Of the second only this was lost.
        ("status", "b", "idle"),
        ("status", "", "idle"),
    ]


@virtual
async def test_new_requests_wait_behind_the_old_ones(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a")
    async with adopter.adopted():
        await asyncio.sleep(1)
        adopter.ask("n")
        assert adopter.requests_sent() == []
        await adopter.kernel.answer_probes(Channel.SHELL)
    assert adopter.requests_sent() == ["n"]
    # It is none of those that were lost.
    assert [each.msg_id for each in adopter.requests] == ["n"]


@virtual
async def test_a_subshell_is_asked_for_itself(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a", subshell_id="sub")
    async with adopter.adopted() as done:
        await asyncio.sleep(1)
        await adopter.kernel.answer_probes(Channel.SHELL)
        await asyncio.sleep(60)
        # The main shell has nothing to say about it.
        assert [each.msg_id for each in adopter.requests] == ["a"]
        assert adopter.state == "idle"
        assert not done.done()
        await adopter.kernel.answer_probes(Channel.SHELL, "sub")
    assert ("execute_reply", "a", LOST) in adopter.said()


@virtual
async def test_a_kernel_that_dies_meanwhile_is_asked_no_more(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a")
    async with adopter.adopted():
        await asyncio.sleep(1)
        adopter.broker.close()
    assert adopter.said() == [("stream", "a", "stderr")]
    assert list(adopter.requests) == []


@virtual
async def test_an_idle_that_iopub_missed_is_asked_for_again(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a")
    async with adopter.adopted():
        await asyncio.sleep(0.01)
        (_, first), *_ = adopter.kernel.sent
        # The subscription came too late for the status.
        adopter.kernel.say(Channel.SHELL, "kernel_info_reply", first, status="ok")
        await asyncio.sleep(0.4)
        assert len(adopter.kernel.sent) == 1
        await asyncio.sleep(0.2)
        assert len(adopter.kernel.sent) == 2
        await adopter.kernel.answer_probes(Channel.SHELL)
        await asyncio.sleep(5)
        adopter.broker.close()
