"""A new holder's hub and a kernel that is a list: what is made up for, when, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from relay.bridge.control import Attach
from relay.bridge.events import ClientAttached, MessageSubmitted, StartReading
from relay.bridge.messages import Buffer, Channel, Message
from relay.bridge.session import SessionLimits
from relay.bridge.zmq_codec import Signer
from relay.holder.broker.broker import Broker
from relay.holder.broker.recovery import NOTICE, make_up
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal, JournalEntry
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.requests import RequestStore, request
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder
from tests.virtualtime import elapse, virtual

SIGNER = Signer(b"key")
LOST = "RelayReplyLost"
LIMITS = SessionLimits(
    sessions=10, requests=100, repeats=10, lifetime=100.0, anonymous_lifetime=100.0
)
ASKER = Attach(link="l", principal="p", session_id="s")


class Sockets:
    """In the place of a kernel's sockets: what was sent to it, and its answers."""

    def __init__(self, broker: Broker) -> None:
        self.sent: list[tuple[Channel, dict[str, Any]]] = []
        self.inherited = True
        self._broker = broker

    def send(self, channel: Channel, parts: Sequence[Buffer]) -> None:
        self.sent.append((channel, json.loads(bytes(parts[2]))))

    def drop_inherited(self) -> None:
        self.inherited = False

    def close(self) -> None:
        return

    def say(
        self, channel: Channel, msg_type: str, parent: dict[str, Any], **content: object
    ) -> None:
        header = {"msg_id": "k", "msg_type": msg_type, "session": "kernel"}
        head, above, rest = (json.dumps(each).encode() for each in (header, parent, content))
        message = Message(channel, head, above, b"{}", rest)
        self._broker.on_multipart(channel, [bytes(part) for part in SIGNER.serialize(message)])

    async def answer_probes(self, channel: Channel, subshell: str | None = None) -> int:
        """Answer the probes of a lane until none comes; how many there were."""
        answered = 0
        while True:
            await elapse(0.01)
            mine = [
                header
                for sent, header in self.sent
                if header["msg_type"] == "kernel_info_request"
                and (sent, header.get("subshell_id")) == (channel, subshell)
            ]
            if len(mine) == answered:
                return answered
            answered += 1
            self.say(channel, "kernel_info_reply", mine[-1], status="ok")
            self.say(Channel.IOPUB, "status", mine[-1], execution_state="idle")


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
        self.requests = RequestStore(folder / "requests.log", 100)
        memory = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        memory.handle(ClientAttached(1, ASKER), 0.0)
        for number, msg_id in enumerate(left, 1):
            ids = msg_id, "c", "execute_request", more.get("subshell_id", "")
            asked = MessageSubmitted(1, number, Channel.SHELL, *ids)
            memory.handle(asked, 0.0)
        memory.close()
        memory = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        journal = Journal.open(
            folder / "journal", max_bytes=2**20, segment_bytes=2**20, tail_bytes=2**20
        )
        answers = ReplyJournal(folder / "answers", 2**20)
        self.broker = Broker(
            memory,
            journal,
            answers,
            self.requests,
            GrantStore(KernelFolder(folder), 1),
            lambda: None,
        )
        self.connection = self.broker.attach(Reader(), ASKER)
        for msg_id in left:
            self.requests.add(request(Channel.SHELL, header(msg_id, **more)))
        self.sockets = Sockets(self.broker)

    @contextlib.asynccontextmanager
    async def adopted(self) -> AsyncIterator[asyncio.Task[None]]:
        """Leaving waits until all is made up for."""
        self.broker.adopt(self.sockets, SIGNER, NOTICE)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            yield tasks.create_task(make_up(self.broker, self.requests))

    def ask(self, msg_id: str) -> None:
        message = Message(Channel.SHELL, header(msg_id), b"{}", b"{}", b"{}")
        self.broker.submit(self.connection, int(msg_id.encode().hex(), 16), message)

    def said(self) -> list[tuple[str, str, Any]]:
        """Type, parent's id and content's first value of each entry, in order."""
        entries: tuple[JournalEntry, ...] = self.broker.journal.read(0, 2**20).entries
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
            each["msg_id"] for _, each in self.sockets.sent if each["msg_type"] == "execute_request"
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
        assert await adopter.sockets.answer_probes(Channel.SHELL) == 3
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
    assert not adopter.sockets.inherited


@virtual
async def test_what_comes_after_all_is_not_made_up(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a", "b")
    async with adopter.adopted():
        await asyncio.sleep(1)
        a, b = json.loads(header("a")), json.loads(header("b"))
        adopter.sockets.say(Channel.SHELL, "execute_reply", a, status="ok", name="real")
        adopter.sockets.say(Channel.IOPUB, "status", a, execution_state="idle")
        adopter.sockets.say(Channel.SHELL, "execute_reply", b, status="ok", name="real")
        await adopter.sockets.answer_probes(Channel.SHELL)
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
        await adopter.sockets.answer_probes(Channel.SHELL)
    assert adopter.requests_sent() == ["n"]
    # It is none of those that were lost.
    assert [each.msg_id for each in adopter.requests] == ["n"]


@virtual
async def test_a_subshell_is_asked_for_itself(tmp_path: Path) -> None:
    adopter = Adopter(tmp_path, "a", subshell_id="sub")
    async with adopter.adopted() as done:
        await asyncio.sleep(1)
        await adopter.sockets.answer_probes(Channel.SHELL)
        await asyncio.sleep(60)
        # The main shell has nothing to say about it.
        assert [each.msg_id for each in adopter.requests] == ["a"]
        assert adopter.state == "idle"
        assert not done.done()
        await adopter.sockets.answer_probes(Channel.SHELL, "sub")
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
        (_, first), *_ = adopter.sockets.sent
        # The subscription came too late for the status.
        adopter.sockets.say(Channel.SHELL, "kernel_info_reply", first, status="ok")
        await asyncio.sleep(0.4)
        assert len(adopter.sockets.sent) == 1
        await asyncio.sleep(0.2)
        assert len(adopter.sockets.sent) == 2
        await adopter.sockets.answer_probes(Channel.SHELL)
        await asyncio.sleep(5)
        adopter.broker.close()
