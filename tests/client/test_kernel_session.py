from __future__ import annotations

import pytest

from relay.bridge.control import Position
from relay.bridge.messages import Channel, Message, parse_header
from relay.bridge.ws_codec import Subprotocol, decode
from relay.client.errors import KernelGone, KernelRestarted
from relay.client.inbox import Inbox
from relay.client.kernel_session import KernelSession
from relay.errors import BadRequest, ClientError, MalformedMessage, RelayError
from tests.client.fakekernel import EPOCH, FakeKernel
from tests.virtualtime import virtual

CONTENT = {"code": "print 1"}


class Script:
    """A conversation, and a kernel that is told and heard by hand."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.talk = KernelSession("s", None, lambda: "d", in_flight=3)
        self._heard = 0

    def execute(self, code: str = "print 1", msg_id: str | None = None) -> tuple[str, Inbox]:
        return self.talk.request(Channel.SHELL, "execute_request", {"code": code}, msg_id=msg_id)

    def sent(self) -> list[str]:
        """Hand the kernel what is unsent; the msg_ids."""
        ids = []
        while (payload := self.talk.outbox.next_unsent()) is not None:
            ids.append(msg_id(payload))
            self.kernel.submit(payload)
        return ids

    def hear(self, count: int | None = None) -> None:
        """Take what the kernel said since."""
        end = len(self.kernel.journal) if count is None else self._heard + count
        while self._heard < end:
            self._heard += 1
            reader, _ = self.kernel.journal[self._heard - 1]
            if reader in {"", "s"}:
                self.talk.receive(self.kernel.payload(self._heard))


def msg_id(payload: bytes) -> str:
    return parse_header(decode(Subprotocol.V1, text=False, payload=payload).header).msg_id


async def types(inbox: Inbox) -> list[str]:
    """What is in an inbox, to its end."""
    found = []
    while (message := await inbox.get()) is not None:
        inbox.done(message)
        found.append(message.msg_type)
    return found


async def end_of(inbox: Inbox) -> RelayError | None:
    try:
        await types(inbox)
    except RelayError as error:
        return error
    return None


@virtual
async def test_what_may_not_have_arrived_is_sent_again_in_its_order() -> None:
    script = Script()
    ids = [script.execute(code)[0] for code in ("hold", "print 2", "print 3")]
    assert script.sent() == ids
    assert script.sent() == []
    script.talk.outbox.reconnected()
    assert script.sent() == ids
    script.hear()
    script.talk.outbox.reconnected()
    assert script.sent() == ids[1:]
    script.kernel.release()
    script.hear()
    script.talk.outbox.reconnected()
    assert script.sent() == []


@virtual
async def test_a_request_of_which_something_came_is_not_repeated() -> None:
    script = Script()
    _, inbox = script.execute()
    script.sent()
    script.hear(1)  # busy
    script.talk.outbox.reconnected()
    assert script.sent() == []
    script.hear()
    assert await types(inbox) == ["stream", "execute_reply"]


@virtual
async def test_no_more_is_in_flight_than_the_relay_would_know_again() -> None:
    script = Script()
    ids = [script.execute(code)[0] for code in ("hold", *["print 1"] * 5)]
    assert script.sent() == ids[:3]
    script.hear()
    assert script.sent() == ids[3:4]
    script.talk.outbox.reconnected()
    assert script.sent() == ids[1:4]
    script.kernel.release()
    script.hear()
    assert script.sent() == ids[4:]


@virtual
async def test_an_answer_does_not_wait_for_what_waits_for_it() -> None:
    script = Script()
    _, inbox = script.execute("ask")
    for _ in range(9):
        script.execute()
    script.sent()
    script.hear()
    question = await inbox.get()
    assert question is not None
    script.talk.answer(question, "Ada")
    script.sent()
    assert script.kernel.answers == ["Ada"]


@virtual
async def test_a_cell_that_asks_again_has_had_its_answer() -> None:
    script = Script()
    _, inbox = script.execute("ask")
    script.sent()
    script.hear()
    question = await inbox.get()
    assert question is not None
    script.talk.answer(question, "Ada")
    script.kernel.publish("input_request", {}, script.kernel.running, Channel.STDIN)
    script.hear()
    script.talk.outbox.reconnected()
    assert script.sent() == []


@virtual
async def test_a_msg_id_is_used_once_at_a_time() -> None:
    script = Script()
    script.execute(msg_id="mine")
    with pytest.raises(BadRequest, match="msg_id"):
        script.execute(msg_id="mine")
    with pytest.raises(BadRequest, match="msg_id"):
        script.talk.resume("mine", None, None)


@virtual
async def test_what_others_asked_is_heard_by_listeners_only() -> None:
    script = Script()
    inbox = script.talk.listen()
    mine, _ = script.execute()
    script.sent()
    other = Message(
        Channel.SHELL, b'{"msg_id": "%b", "session": "t"}' % mine.encode(), b"", b"", b""
    )
    script.kernel.publish("stream", {"name": "stdout", "text": "x"}, other)
    script.hear()
    _, own = script.execute("print 1")
    script.talk.fail(ClientError("over"))
    assert await end_of(own) is script.talk.failure
    assert len(inbox._messages) == 5
    with pytest.raises(ClientError, match="over"):
        script.talk.listen()


@virtual
async def test_another_clients_cell_of_the_same_id_is_not_ours() -> None:
    script = Script()
    mine, inbox = script.execute("hold")
    script.sent()
    head = b'{"msg_id": "%b", "session": "t"}' % mine.encode()
    other = Message(Channel.SHELL, head, b"", b"", b"")
    script.kernel.publish("stream", {"name": "stdout", "text": "x"}, other)
    script.hear()
    assert not inbox._messages


@virtual
async def test_who_leaves_hears_no_more() -> None:
    script = Script()
    inbox = script.talk.listen()
    script.talk.leave(inbox)
    script.execute()
    script.sent()
    script.hear()
    assert script.talk.tracker.position == Position(EPOCH, 1)  # the line that its owner has to read
    assert not inbox._messages


@virtual
async def test_answers_are_repeated_until_the_cell_is_over_with_one_id_per_question() -> None:
    script = Script()
    _, inbox = script.execute("ask")
    script.sent()
    script.hear()
    question = await inbox.get()
    assert question is not None
    script.talk.answer(question, "Ada")
    reply = f"{question.header.msg_id}-reply"
    script.talk.outbox.reconnected()
    assert script.sent() == [reply]
    script.talk.answer(question, "Bob")
    assert script.sent() == [reply]
    assert script.kernel.answers == ["Ada"]
    script.hear()
    script.talk.outbox.reconnected()
    assert script.sent() == []
    script.talk.answer(question, "late")
    assert script.sent() == []


@pytest.mark.parametrize("states", [("restarting", "starting"), ("starting",)])
def test_a_restart_ends_what_was_asked_before(states: tuple[str, ...]) -> None:
    @virtual
    async def test() -> None:
        script = Script()
        _, inbox = script.execute("hold")
        script.sent()
        script.kernel.lose_process(*states)
        script.hear()
        assert isinstance(await end_of(inbox), KernelRestarted)
        _, after = script.execute()
        assert len(script.sent()) == 1
        script.hear()
        assert await types(after) == ["stream", "execute_reply"]

    test()


@virtual
async def test_a_restart_of_our_own_ends_what_was_asked_before_it_only() -> None:
    script = Script()
    _, before = script.execute("hold")
    script.sent()
    script.kernel.publish("stream", {"name": "stdout", "text": "x"}, script.kernel.running)
    script.kernel.lose_process("starting")
    script.talk.restarted()
    _, after = script.execute("print 1")
    script.sent()
    script.hear()
    first = await before.get()
    assert first is not None
    assert first.msg_type == "stream"
    assert isinstance(await end_of(before), KernelRestarted)
    assert await types(after) == ["stream", "execute_reply"]
    assert script.kernel.ran == ["hold", "", "print 1"]
    # The next one is somebody else's again.
    _, later = script.execute("hold")
    script.sent()
    script.kernel.lose_process("starting")
    script.hear()
    assert isinstance(await end_of(later), KernelRestarted)


@virtual
async def test_a_dead_kernel_takes_nothing_until_it_lives_again() -> None:
    script = Script()
    _, inbox = script.execute("hold")
    script.sent()
    script.kernel.lose_process("dead")
    script.hear()
    assert isinstance(await end_of(inbox), KernelGone)
    with pytest.raises(KernelGone):
        script.execute()
    script.kernel.lose_process("starting")
    script.hear()
    script.execute()
    script.kernel.lose_process("dead")
    script.hear()
    script.talk.restarted()
    script.execute()


@virtual
async def test_a_cell_is_resumed_wherever_its_reader_stood() -> None:
    for stood in range(5):  # after nothing, busy, the line, the reply, idle
        first = Script()
        first.execute(msg_id="mine")
        first.sent()
        second = Script()
        second.kernel = first.kernel
        second._heard = stood
        inbox = second.talk.resume("mine", CONTENT, None)
        second.sent()
        second.hear()
        expected = ["stream", "execute_reply"][max(0, stood - 1) :]
        assert await types(inbox) == expected, stood
        assert first.kernel.ran.count("print 1") == 1


@virtual
async def test_a_cell_that_never_arrived_is_run_if_its_code_is_known() -> None:
    script = Script()
    inbox = script.talk.resume("lost", None, None)
    with_code = script.talk.resume("sent", CONTENT, None)
    assert len(script.sent()) == 3
    script.hear()
    assert await types(inbox) == []
    assert await types(with_code) == ["stream", "execute_reply"]
    assert script.kernel.ran == ["", "print 1", ""]


@virtual
async def test_what_an_execution_was_ahead_with_is_left_out() -> None:
    script = Script()
    inbox = script.talk.resume("mine", {"code": "print 4"}, Position(EPOCH, 3))  # busy, two lines
    script.sent()
    script.hear()
    assert await types(inbox) == ["stream", "stream", "execute_reply"]


@virtual
async def test_a_server_that_does_not_number_is_told_from_a_relay() -> None:
    script = Script()
    script.kernel.publish("status", {"execution_state": "idle"})
    script.kernel.publish("status", {"execution_state": "idle"})
    first, second = (script.kernel.payload(number) for number in (1, 2))
    with pytest.raises(MalformedMessage):
        script.talk.receive(first.replace(b"relay_seq", b"other_seq"))
    # One message of a kernel whose metadata is none cannot be numbered: that is another matter.
    script.talk.receive(first)
    inbox = script.talk.listen()
    script.talk.receive(second.replace(b"relay_seq", b"other_seq"))
    odd = await inbox.get()
    assert odd is not None
    assert (odd.seq, odd.numbered) == (Position(EPOCH, 1), False)
    inbox.done(odd)
    assert script.talk.tracker.position == Position(EPOCH, 1)


@virtual
async def test_whoever_sends_and_whoever_reads_is_told() -> None:
    script = Script()
    told: list[str] = []
    script.talk.outbox.on_unsent = lambda: told.append("unsent")
    script.talk.on_room = lambda: told.append("room")
    _, inbox = script.execute()
    script.sent()
    script.hear()
    assert told == ["unsent"]
    await types(inbox)
    assert told == ["unsent", "room", "room"]
    script.talk.listen()
    script.talk.outbox.reconnected()
    assert told[3:] == ["unsent", "unsent"]
