"""A broker and a kernel that is a list: nothing of a viewer's gets there, no client hangs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from relay.auth.ownership import Grant
from relay.bridge.control import Attach
from relay.bridge.events import StartReading
from relay.bridge.messages import Channel, Message
from relay.bridge.requests import KernelRequest
from relay.bridge.session_table import SessionLimits
from relay.errors import Forbidden, MalformedMessage
from relay.holder.broker.broker import Broker
from relay.holder.broker.recovery import synthesize_replies
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder
from tests.holder.fake_backend import FakeChannel
from tests.virtualtime import settle, virtual

LIMITS = SessionLimits(
    sessions=10, requests=100, repeats=10, lifetime=100.0, anonymous_lifetime=100.0
)
ADA, BOB = "token:ada", "token:bob"
INFO: Final = {"status": "ok", "language_info": {"name": "python"}}


class Client:
    """A connection, and what it hears: as its pump would read it from the journal."""

    def __init__(
        self, broker: Broker, principal: str = BOB, session: str = "s", **attach: Any
    ) -> None:
        self._broker = broker
        self._numbers = 0
        self.session = session
        self.ended: tuple[int, str] | str | None = None
        self.audiences: frozenset[bytes] = frozenset()
        self.acknowledged = 0
        asked = Attach(link=f"{id(self):x}", principal=principal, session_id=session, **attach)
        self.connection = broker.inbound.attach(self, asked)

    def start(self, action: StartReading) -> None:
        self.audiences = action.audiences

    def end(self, code: int, reason: str) -> None:
        self.ended = code, reason

    def cut(self, reason: str) -> None:
        self.ended = reason

    def acknowledge(self, number: int) -> None:
        self.acknowledged = number

    def wake(self) -> None:
        return

    def ask(
        self, msg_type: str, channel: Channel = Channel.SHELL, msg_id: str = "m", **header: Any
    ) -> None:
        fields = {"msg_id": msg_id, "session": self.session, "msg_type": msg_type, **header}
        self._numbers += 1
        message = Message(channel, json.dumps(fields).encode(), b"{}", b"{}", b"{}")
        self._broker.inbound.submit(self.connection, self._numbers, message)

    async def heard(self) -> list[tuple[str, str, str, Any]]:
        """Channel, type, parent's id and state or error of each message."""
        await settle()
        found = []
        for entry in self._broker.outbound.journal.read(0, 2**20).entries:
            if entry.audience in self.audiences:
                head, parent, _, content = map(json.loads, entry.parts[:4])
                what = content.get("ename") or content.get("execution_state") or content.get("text")
                known = entry.channel.wire, head["msg_type"], parent.get("msg_id", "")
                found.append((*known, what))
        return found


class Bench:
    def __init__(self, folder: Path, journal_bytes: int = 2**20) -> None:
        journal = Journal.open(
            folder / "journal",
            max_bytes=journal_bytes,
            segment_bytes=journal_bytes // 2,
            tail_bytes=journal_bytes // 2,
        )
        replies = ReplyJournal(folder / "answers", 2**20)
        store = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        grants = GrantStore(KernelFolder(folder), 3)
        self.broker = Broker(store, journal, replies, grants, lambda: None)
        self.kernel = FakeChannel(self.broker.on_message)
        self.broker.open(self.kernel)

    @property
    def requests(self) -> Sequence[KernelRequest]:
        return self.broker.sessions.unfinished

    def learn_info(self) -> None:
        self.broker.ask()
        asked = json.loads(bytes(self.kernel.messages.pop().header))
        self.kernel.say(Channel.SHELL, "kernel_info_reply", asked, **INFO)

    def run(self, state: str) -> None:
        cell = {"msg_id": "cell", "session": "owners", "msg_type": "execute_request"}
        self.kernel.say(Channel.IOPUB, "status", cell, execution_state=state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


REQUESTS = [
    *("execute_request", "complete_request", "inspect_request", "history_request"),
    *("is_complete_request", "comm_info_request", "usage_request", "made_up_request"),
]
ANSWERED = [
    *((Channel.SHELL, each) for each in REQUESTS),
    *((Channel.CONTROL, "shutdown_request"), (Channel.CONTROL, "interrupt_request")),
    *((Channel.CONTROL, "debug_request"), (Channel.CONTROL, "create_subshell_request")),
]


@pytest.mark.parametrize(("channel", "msg_type"), ANSWERED)
@virtual
async def test_what_a_viewer_asks_is_refused_and_gets_to_nobody(
    folder: Path, channel: Channel, msg_type: str
) -> None:
    bench = Bench(folder)
    viewer = Client(bench.broker, views_only=True)
    viewer.ask(msg_type, channel)
    reply = msg_type.replace("_request", "_reply")
    shown = [("iopub", "error", "m", "RelayViewOnly")] if msg_type == "execute_request" else []
    assert await viewer.heard() == [
        ("iopub", "status", "m", "busy"),
        *shown,
        (channel.wire, reply, "m", "RelayViewOnly"),
        ("iopub", "status", "m", "idle"),
    ]
    assert viewer.acknowledged == 1
    assert bench.kernel.sent == []
    assert list(bench.requests) == []


@pytest.mark.parametrize(
    ("channel", "msg_type"),
    [
        (Channel.STDIN, "input_reply"),
        (Channel.STDIN, "execute_request"),
        (Channel.SHELL, "comm_open"),
        (Channel.SHELL, "comm_msg"),
        (Channel.SHELL, "comm_close"),
    ],
)
@virtual
async def test_what_has_no_answer_has_none(folder: Path, channel: Channel, msg_type: str) -> None:
    bench = Bench(folder)
    viewer = Client(bench.broker, views_only=True)
    viewer.ask(msg_type, channel)
    assert await viewer.heard() == []
    assert bench.kernel.sent == []


@virtual
async def test_nobody_sends_on_iopub(folder: Path) -> None:
    viewer = Client(Bench(folder).broker, views_only=True)
    with pytest.raises(MalformedMessage):
        viewer.ask("execute_request", Channel.IOPUB)


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])
@pytest.mark.parametrize("state", ["idle", "busy"])
@virtual
async def test_a_viewer_learns_what_kernel_it_is_without_asking_it(
    folder: Path, channel: Channel, state: str
) -> None:
    bench = Bench(folder)
    bench.learn_info()
    bench.run(state)
    viewer = Client(bench.broker, views_only=True)
    viewer.ask("kernel_info_request", channel)
    heard = await viewer.heard()
    expected = [
        ("iopub", "status", "m", "busy"),
        (channel.wire, "kernel_info_reply", "m", None),
        ("iopub", "status", "m", "idle"),
    ]
    if state == "busy":
        expected.append(("iopub", "status", "", "busy"))
    assert heard[1:] == expected
    assert bench.kernel.sent == []


@virtual
async def test_who_is_too_early_hears_once_it_is_known(folder: Path) -> None:
    bench = Bench(folder)
    viewer, gone = (Client(bench.broker, session=name, views_only=True) for name in "ab")
    viewer.ask("kernel_info_request")
    gone.ask("kernel_info_request")
    bench.broker.inbound.detach(gone.connection, None)
    assert await viewer.heard() == []
    bench.learn_info()
    assert ("shell", "kernel_info_reply", "m", None) in await viewer.heard()
    assert await gone.heard() == []


@virtual
async def test_a_restart_is_no_reason_to_wait(folder: Path) -> None:
    bench = Bench(folder)
    bench.learn_info()
    bench.broker.close()
    bench.broker.open(FakeChannel(bench.broker.on_message))
    viewer = Client(bench.broker, views_only=True)
    viewer.ask("kernel_info_request")
    assert ("shell", "kernel_info_reply", "m", None) in await viewer.heard()


@virtual
async def test_a_viewer_hears_what_is_for_everybody_and_nothing_else(folder: Path) -> None:
    bench = Bench(folder)
    owner = Client(bench.broker, ADA)
    # With the owner's session_id, with which it begins nothing.
    viewer = Client(bench.broker, BOB, views_only=True)
    owner.ask("execute_request", msg_id="cell")
    ((_, asked),) = bench.kernel.sent
    bench.kernel.say(Channel.STDIN, "input_request", asked, prompt="?")
    bench.kernel.say(Channel.IOPUB, "stream", asked, name="stdout", text="x")
    bench.kernel.say(Channel.SHELL, "execute_reply", asked, status="ok")
    assert await viewer.heard() == [("iopub", "stream", "cell", "x")]
    assert [each[:2] for each in await owner.heard()] == [
        ("stdin", "input_request"),
        ("iopub", "stream"),
        ("shell", "execute_reply"),
    ]
    # Nor does the owner hear what the viewer is told.
    before = await owner.heard()
    viewer.ask("execute_request", msg_id="cell")
    assert await owner.heard() == before
    assert owner.ended is None


@virtual
async def test_a_viewer_does_not_wait_in_anybodys_place(folder: Path) -> None:
    bench = Bench(folder)
    owner = Client(bench.broker, ADA)
    viewer = Client(bench.broker, BOB, views_only=True)
    # By the same ids as the owner's next request.
    viewer.ask("execute_request", msg_id="cell")
    before = await viewer.heard()
    owner.ask("execute_request", msg_id="cell")
    ((_, asked),) = bench.kernel.sent
    bench.kernel.say(Channel.STDIN, "input_request", asked, prompt="?")
    bench.kernel.say(Channel.SHELL, "execute_reply", asked, status="ok")
    assert await viewer.heard() == before
    assert [each[1] for each in await owner.heard()] == ["input_request", "execute_reply"]


@virtual
async def test_a_long_header_takes_no_room_in_the_journal(folder: Path) -> None:
    bench = Bench(folder)
    viewer = Client(bench.broker, views_only=True)
    viewer.ask("execute_request", x="x" * 100_000)
    assert [each[2] for each in await viewer.heard()] == ["m"] * 4
    assert bench.broker.outbound.journal.size < 10_000


@virtual
async def test_a_viewer_is_no_use_of_the_kernel(folder: Path) -> None:
    bench = Bench(folder)
    bench.broker.activity.last = 7.0
    viewer = Client(bench.broker, views_only=True)
    viewer.ask("execute_request")
    assert bench.broker.activity.last == 7.0


# Grants


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (Grant.USE, None, "the kernel is no longer shared with you"),
        (Grant.VIEW, None, "the kernel is no longer shared with you"),
        (Grant.USE, Grant.VIEW, "you may now only view the kernel"),
    ],
)
@virtual
async def test_who_loses_a_grant_is_cut_off_and_not_heard_any_more(
    folder: Path, before: Grant, after: Grant | None, reason: str
) -> None:
    bench = Bench(folder)
    bench.broker.inbound.grant(BOB, before)
    owner = Client(bench.broker, ADA, "o")
    guest = Client(bench.broker, BOB, granted=True)
    also = Client(bench.broker, BOB, "t", granted=True)
    bench.broker.inbound.grant(BOB, after)
    assert (guest.ended, also.ended, owner.ended) == (reason, reason, None)
    # It has not hung up yet.
    guest.ask("execute_request")
    assert bench.kernel.sent == []
    assert guest.acknowledged == 0
    bench.broker.inbound.detach(guest.connection, None)
    if after is None:
        with pytest.raises(Forbidden):
            Client(bench.broker, BOB, granted=True)
    else:
        again = Client(bench.broker, BOB, granted=True)
        again.ask("execute_request")
        assert bench.kernel.sent == []
    owner.ask("execute_request")
    assert len(bench.kernel.sent) == 1


@virtual
async def test_a_grant_that_says_the_same_or_more_ends_nothing(folder: Path) -> None:
    bench = Bench(folder)
    bench.broker.inbound.grant(BOB, Grant.VIEW)
    viewer = Client(bench.broker, BOB, granted=True)
    bench.broker.inbound.grant(BOB, Grant.VIEW)
    bench.broker.inbound.grant("token:eve", Grant.VIEW)
    bench.broker.inbound.grant("token:eve", None)
    bench.broker.inbound.grant(BOB, Grant.USE)
    assert viewer.ended is None


@virtual
async def test_who_reads_the_past_by_a_grant_loses_it_too(folder: Path) -> None:
    bench = Bench(folder)
    bench.broker.inbound.grant(BOB, Grant.USE)
    readers = [Client(bench.broker, name, name) for name in (ADA, BOB)]
    bench.broker.inbound.watch(readers[0], ADA, granted=False)
    number = bench.broker.inbound.watch(readers[1], BOB, granted=True)
    bench.broker.inbound.grant(BOB, Grant.VIEW)
    assert readers[1].ended is None
    bench.broker.inbound.grant(BOB, None)
    assert (readers[0].ended, readers[1].ended is None) == (None, False)
    bench.broker.inbound.unwatch(number)
    with pytest.raises(Forbidden):
        bench.broker.inbound.watch(readers[1], BOB, granted=True)


def kept(broker: Broker) -> list[tuple[str, str, str]]:
    """Channel, type and state of each message that is kept when the output goes."""
    found = []
    after = 0
    while entries := broker.outbound.replies._kept.read(after, 2**20).entries:
        for entry in entries:
            head, _, _, content = map(json.loads, entry.parts[:4])
            state = content.get("execution_state", "")
            found.append((entry.channel.wire, head["msg_type"], state))
        after = entries[-1].seq
    return found


@virtual
async def test_what_somebody_waits_for_is_kept_when_the_output_goes(folder: Path) -> None:
    bench = Bench(folder)
    client = Client(bench.broker, ADA)
    client.ask("execute_request")
    cell = {"msg_id": "m", "session": client.session, "msg_type": "execute_request"}
    bench.kernel.say(Channel.IOPUB, "status", cell, execution_state="busy")
    bench.kernel.say(Channel.IOPUB, "stream", cell, name="stdout", text="x")
    bench.kernel.say(Channel.STDIN, "input_request", cell, prompt="?")
    # A kernel that says something else in a status' words.
    bench.kernel.say(Channel.IOPUB, "display_data", cell, execution_state="idle")
    bench.kernel.say(Channel.SHELL, "execute_reply", cell, status="ok")
    bench.kernel.say(Channel.IOPUB, "status", cell, execution_state="idle")
    bench.broker.say("a notice")
    bench.broker.announce("restarting")
    await settle()
    assert kept(bench.broker) == [
        ("iopub", "status", "busy"),
        ("stdin", "input_request", ""),
        ("shell", "execute_reply", ""),
        ("iopub", "status", "idle"),
        ("iopub", "status", "restarting"),
    ]
    assert bench.broker.figures.journal_bytes > bench.broker.outbound.journal.size


@virtual
async def test_what_a_holder_makes_up_for_is_kept_too(folder: Path) -> None:
    bench = Bench(folder)
    client = Client(bench.broker, ADA)
    client.ask("execute_request")
    (asked,) = bench.requests
    synthesize_replies(bench.broker, asked)
    await settle()
    assert kept(bench.broker) == [("shell", "execute_reply", ""), ("iopub", "status", "idle")]


@virtual
async def test_a_busy_kernels_answer_is_kept_and_a_viewers_refusal_is_not(folder: Path) -> None:
    bench = Bench(folder)
    bench.learn_info()
    bench.run("busy")
    Client(bench.broker, ADA).ask("kernel_info_request")
    viewer = Client(bench.broker, BOB, "viewer", views_only=True)
    viewer.ask("execute_request")
    viewer.ask("kernel_info_request")
    await settle()
    replies = [msg_type for channel, msg_type, _ in kept(bench.broker) if channel == "shell"]
    assert replies == ["kernel_info_reply"]


@virtual
async def test_a_session_reads_answers_where_the_journal_has_a_gap(folder: Path) -> None:
    bench = Bench(folder, journal_bytes=1000)
    client = Client(bench.broker, ADA)
    client.ask("execute_request")
    cell = {"msg_id": "m", "session": client.session, "msg_type": "execute_request"}
    bench.kernel.say(Channel.IOPUB, "stream", cell, text="lost")
    bench.kernel.say(Channel.SHELL, "execute_reply", cell, status="ok")
    for _ in range(9):
        bench.kernel.say(Channel.IOPUB, "stream", cell, text="x" * 300)
        await settle()
    assert bench.broker.outbound.journal.first_seq > 2
    batch = bench.broker.outbound.read(0, 2**20)
    assert batch.gap == 1
    assert [(entry.seq, entry.channel) for entry in batch.entries] == [(2, Channel.SHELL)]
    assert batch.entries[0].audience in client.audiences
