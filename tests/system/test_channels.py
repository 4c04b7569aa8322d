"""Kernel channels of a running relay, as clients of both subprotocols have them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any, NoReturn, Self

import psutil
import pytest
from jupyter_server.services.kernels.connection.base import (
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket
from websockets.typing import Subprotocol

from tests.system.channels import V1, Channels, Execution, Message, count_lines
from tests.system.kernels import record_of
from tests.system.running import RunningRelay, wait_for

MIB = 1024 * 1024
PING_INTERVAL = 0.5
"""Seconds."""

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@pytest.fixture(scope="module")
def small() -> Iterator[RunningRelay]:
    """A relay that pings often and keeps little."""
    environ = {
        "RELAY_WEBSOCKET__PING_INTERVAL": str(PING_INTERVAL),
        "RELAY_JOURNAL__BYTES": "2MiB",
        "RELAY_JOURNAL__SEGMENT_BYTES": "512KiB",
        "RELAY_JOURNAL__TAIL_BYTES": "128KiB",
    }
    with RunningRelay(("alpha",), environ=environ) as running:
        yield running


# --- helpers --------------------------------------------------------------------------------


class Watched(ClientConnection):
    """Counts the frames that come in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.frames: list[Opcode] = []
        super().__init__(*args, **options)

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame):
            self.frames.append(event.opcode)
        super().process_event(event)


@contextlib.contextmanager
def watched(relay: RunningRelay, kernel: str, **options: Any) -> Iterator[Watched]:
    """A WebSocket opened with ``options`` of the library's own."""
    url = f"{relay.info.wss_url}/alpha/api/kernels/{kernel}/channels"
    with open_socket(
        url,
        ssl=relay.tls_for_threads,
        additional_headers=relay.authorization,
        max_size=None,
        proxy=None,
        create_connection=Watched,
        **options,
    ) as socket:
        assert isinstance(socket, Watched)
        yield socket


def noise(size: int) -> bytes:
    """Bytes that look random, always the same; `NOISE` makes them in a kernel."""
    return random.Random(size).randbytes(size)  # noqa: S311 - no secret


NOISE = "import random; noise = random.Random({0}).randbytes({0})"


def until(channels: Channels, check: Callable[[Message], bool], timeout: float = 30.0) -> Message:
    """The first message that ``check`` accepts."""
    deadline = time.monotonic() + timeout
    while not check(message := channels.receive(max(deadline - time.monotonic(), 0.0))):
        pass
    return message


def answers(msg_id: str, msg_type: str) -> Callable[[Message], bool]:
    def check(message: Message) -> bool:
        parent = message["parent_header"].get("msg_id")
        return bool(parent == msg_id and message["header"]["msg_type"] == msg_type)

    return check


def run_unread(relay: RunningRelay, kernel: str, channels: Channels, code: str) -> str:
    """Run code and wait for its end without reading a message; its ``msg_id``."""
    done = relay.folder / secrets.token_hex(8)
    msg_id = channels.submit(f"{code}\nimport pathlib; pathlib.Path({str(done)!r}).touch()")
    wait_for("the cell's end", done.exists)

    def is_idle() -> bool:
        model = relay.request("GET", f"/alpha/api/kernels/{kernel}").json
        return bool(model["execution_state"] == "idle")

    wait_for("an idle kernel", is_idle)
    return msg_id


def read_on(channels: Channels, into: list[Message]) -> NoReturn:
    """Read until that raises."""
    while True:
        into.append(channels.receive())


def closed_by_server(socket: ClientConnection) -> ConnectionClosed:
    """Read until the server closes; how it did that."""
    try:
        while True:
            socket.recv(30.0)
    except ConnectionClosed as closed:
        return closed


# --- handshake ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([V1], V1),
        (["v2.example.org", V1], V1),
        ([V1, "v2.example.org"], V1),
        (["v2.example.org"], None),
        (None, None),
    ],
)
def test_v1_is_chosen_whenever_it_is_offered(
    relay: RunningRelay, kernel: str, offered: list[Subprotocol] | None, chosen: str | None
) -> None:
    with watched(relay, kernel, subprotocols=offered, compression=None) as socket:
        assert socket.subprotocol == chosen
        assert Channels(socket, "s").execute("print(1)").stdout == "1\n"
    # Legacy messages without buffers are text, those of v1 never are.
    kinds = {opcode for opcode in socket.frames if opcode in {Opcode.TEXT, Opcode.BINARY}}
    assert kinds == {Opcode.BINARY if chosen else Opcode.TEXT}


@both
def test_compression_is_declined(relay: RunningRelay, kernel: str, v1: bool) -> None:
    offered = [V1] if v1 else None
    with watched(relay, kernel, subprotocols=offered, compression="deflate") as socket:
        assert socket.request is not None
        assert "permessage-deflate" in socket.request.headers["Sec-WebSocket-Extensions"]
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers
        assert Channels(socket, "s").execute("print('x' * 5000)").stdout == "x" * 5000 + "\n"


@both
def test_the_https_port_serves_channels_too(relay: RunningRelay, kernel: str, v1: bool) -> None:
    with relay.connect("alpha", kernel, v1=v1, port="https") as channels:
        assert channels.execute("print(1)").stdout == "1\n"


# --- messages -------------------------------------------------------------------------------


def test_legacy_messages_have_what_clients_read(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel, v1=False) as channels:
        msg_id = channels.submit("print(1)")
        ends = {("shell", "execute_reply"), ("iopub", "idle")}
        while ends:
            text = channels.socket.recv(30.0)
            assert isinstance(text, str)
            message = json.loads(text)
            assert set(message) == {
                *("header", "parent_header", "metadata", "content"),
                *("channel", "buffers", "msg_id", "msg_type"),
            }
            assert message["msg_id"] == message["header"]["msg_id"]
            assert message["msg_type"] == message["header"]["msg_type"]
            assert message["buffers"] == []
            assert message["parent_header"]["msg_id"] == msg_id
            assert message["parent_header"]["session"] == channels.session
            state = message["content"].get("execution_state")
            ends.discard((message["channel"], state or message["msg_type"]))


def test_a_legacy_message_without_a_channel_goes_to_shell(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel, v1=False) as channels:
        header = {"msg_id": "bare", "msg_type": "kernel_info_request", "session": ""}
        channels.socket.send(json.dumps({"header": header, "content": {}, "buffers": {}}))
        reply = until(channels, answers("bare", "kernel_info_reply"))
    assert reply["channel"] == "shell"
    assert reply["content"]["status"] == "ok"


def test_requests_on_control_are_answered_there(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel) as channels:
        msg_id = channels.send("control", "kernel_info_request", {})
        assert until(channels, answers(msg_id, "kernel_info_reply"))["channel"] == "control"


ECHO = """
from comm import get_comm_manager

def opened(comm, message):
    def echo(message):
        buffers = [bytes(each) for each in message["buffers"]]
        comm.send({"sizes": [len(each) for each in buffers]}, buffers=buffers[::-1])
    comm.on_msg(echo)

get_comm_manager().register_target("echo", opened)
"""


def send_comm(channels: Channels, buffers: list[bytes]) -> Message:
    """Send buffers to the kernel's echo; what comes back."""
    channels.execute(ECHO)
    channels.send("shell", "comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
    content = {"comm_id": "c", "data": {}}
    msg_id = channels.send("shell", "comm_msg", content, buffers=buffers)
    return until(channels, answers(msg_id, "comm_msg"))


@both
@pytest.mark.parametrize(
    "sizes", [(0, 3, 1, 200_000), (5 * MIB,)], ids=["several buffers", "5 MiB"]
)
def test_buffers_both_ways(
    relay: RunningRelay, kernel: str, v1: bool, sizes: tuple[int, ...]
) -> None:
    buffers = [noise(size) for size in sizes]
    with relay.connect("alpha", kernel, v1=v1) as channels:
        came = send_comm(channels, buffers)
    assert came["channel"] == "iopub"
    assert came["content"]["data"]["sizes"] == list(sizes)
    assert [bytes(each) for each in came["buffers"]] == buffers[::-1]


def test_buffers_in_text_frames(
    relay: RunningRelay, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Jupyter Server's gateway client sends them: not UTF-8, and in a text frame all the
    same."""
    buffers = [b"\xff\xfe\x00\x80", b"\xc3"]
    headers = {**relay.authorization, "User-Agent": "Tornado/6.5"}
    with (
        relay.connect("alpha", kernel, v1=False, headers=headers) as gateway,
        relay.connect("alpha", kernel) as other,
    ):
        send = gateway.socket.send
        monkeypatch.setattr(gateway.socket, "send", lambda data: send(data, text=True))
        asked = send_comm(gateway, buffers)["parent_header"]["msg_id"]
        # It is sent texts only; what the kernel got, somebody else is told in full.
        came = until(other, answers(asked, "comm_msg"))
    assert [bytes(each) for each in came["buffers"]] == buffers[::-1]


@both
def test_a_message_in_fragments_with_pings_between_them(
    relay: RunningRelay, kernel: str, v1: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay.connect("alpha", kernel, v1=v1) as channels:
        send, fragments = channels.socket.send, count()

        def send_in_pieces(data: str | bytes) -> None:
            def pieces() -> Iterator[Any]:
                for start in range(0, len(data), 4001):
                    next(fragments)
                    yield data[start : start + 4001]
                    channels.socket.ping()

            send(pieces())

        monkeypatch.setattr(channels.socket, "send", send_in_pieces)
        text = noise(60_000).hex()
        done = channels.execute(
            f"import hashlib; print(hashlib.md5({text!r}.encode()).hexdigest())"
        )
    assert next(fragments) > 25
    assert done.stdout == hashlib.md5(text.encode()).hexdigest() + "\n"  # noqa: S324


def shell_message(header: Any, content: str = "{}") -> bytes:
    """A v1 message that says what it says."""
    parts = [json.dumps(header).encode(), b"{}", b"{}", content.encode()]
    packed: bytes = serialize_msg_to_ws_v1(parts, "shell")
    return packed


HEADER = {"msg_id": "m", "msg_type": "kernel_info_request", "session": "s"}
MALFORMED = {
    "v1: empty": (True, b""),
    "v1: text": (True, "{}"),
    "v1: a count only": (True, struct.pack("<Q", 6)),
    "v1: 2**63 offsets": (True, struct.pack("<Q", 2**63) + b"x" * 64),
    "v1: an offset of 2**63": (True, struct.pack("<7Q", 6, 56, 2**63, 0, 0, 0, 2**64 - 1)),
    "v1: no channel": (True, serialize_msg_to_ws_v1([b"{}"] * 4, "heartbeat")),
    "v1: header a list": (True, shell_message([1])),
    "v1: msg_id a number": (True, shell_message({**HEADER, "msg_id": 7})),
    "legacy: empty": (False, ""),
    "legacy: not JSON": (False, "hello"),
    "legacy: a list": (False, "[]"),
    "legacy: no header": (False, '{"channel": "shell", "content": {}}'),
    "legacy: header a number": (False, '{"channel": "shell", "header": 1}'),
    "legacy: no channel": (False, json.dumps({"header": HEADER, "channel": "heartbeat"})),
    "legacy: a count only": (False, struct.pack(">I", 5)),
    "legacy: 2**32-1 offsets": (False, struct.pack(">I", 2**32 - 1) + b"x" * 64),
    "legacy: an offset past the end": (False, struct.pack(">3I", 2, 12, 99)),
}


@pytest.mark.guarantee
@pytest.mark.parametrize(("v1", "payload"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_ends_its_websocket_and_nothing_else(
    relay: RunningRelay, kernel: str, v1: bool, payload: str | bytes
) -> None:
    with relay.connect("alpha", kernel) as other:
        other.execute("survivor = 42")
        with relay.connect("alpha", kernel, v1=v1) as channels:
            channels.socket.send(payload)
            closed = closed_by_server(channels.socket)
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1007
        assert closed.rcvd.reason.startswith("The message")
        assert other.execute("print(survivor)").stdout == "42\n"


def test_content_that_is_not_json_harms_nobody(relay: RunningRelay, kernel: str) -> None:
    """With v1 the relay does not look at it: it is the kernel that drops it."""
    with relay.connect("alpha", kernel) as channels:
        channels.socket.send(shell_message({**HEADER, "msg_id": "dropped"}, '{"code": '))
        assert channels.execute("print(1)").stdout == "1\n"


def test_a_legacy_binary_message_with_no_buffer(relay: RunningRelay, kernel: str) -> None:
    message = {"header": HEADER, "channel": "shell", "content": {}, "buffers": []}
    with relay.connect("alpha", kernel, v1=False) as channels:
        channels.socket.send(serialize_binary_message(message))
        until(channels, answers("m", "kernel_info_reply"))


# --- who hears what -------------------------------------------------------------------------


def all_until_idle(channels: Channels, msg_id: str) -> list[Message]:
    """Everything that comes, up to the idle status of a request, and a moment longer."""
    messages: list[Message] = []

    def check(message: Message) -> bool:
        messages.append(message)
        idle = message["content"].get("execution_state") == "idle"
        return bool(idle and message["parent_header"].get("msg_id") == msg_id)

    until(channels, check)
    with contextlib.suppress(TimeoutError):
        while True:
            messages.append(channels.receive(0.3))
    return messages


@pytest.mark.guarantee(v1=True)
@both
def test_output_goes_to_all_and_replies_to_the_asker(
    relay: RunningRelay, kernel: str, v1: bool
) -> None:
    with (
        relay.connect("alpha", kernel, v1=v1) as asker,
        relay.connect("alpha", kernel, v1=not v1) as other,
    ):
        msg_id = asker.submit("print('heard\\n', end='')")
        heard = all_until_idle(asker, msg_id), all_until_idle(other, msg_id)
    kinds = [[each["header"]["msg_type"] for each in messages] for messages in heard]
    assert sorted(kinds[0]) == sorted(
        ["status", "execute_input", "stream", "execute_reply", "status"]
    )
    assert kinds[1] == ["status", "execute_input", "stream", "status"]
    ids = [[each["header"]["msg_id"] for each in messages] for messages in heard]
    assert set(ids[1]) < set(ids[0])


@both
def test_input_is_asked_of_the_asker(relay: RunningRelay, kernel: str, v1: bool) -> None:
    with (
        relay.connect("alpha", kernel, v1=v1) as asker,
        relay.connect("alpha", kernel, v1=v1) as other,
    ):
        msg_id = asker.submit("print(input('name? ') * 2)", allow_stdin=True)
        request = until(asker, answers(msg_id, "input_request"))
        assert request["channel"] == "stdin"
        assert request["content"] == {"prompt": "name? ", "password": False}
        asker.send("stdin", "input_reply", {"value": "Ada"}, parent=request["header"])
        assert asker.collect(msg_id).stdout == "AdaAda\n"
        seen = all_until_idle(other, msg_id)
    assert {each["channel"] for each in seen} == {"iopub"}


@pytest.mark.guarantee
def test_one_msg_id_of_two_clients(relay: RunningRelay, kernel: str) -> None:
    """Nor have the two a session in their headers."""
    with relay.connect("alpha", kernel) as one, relay.connect("alpha", kernel, v1=False) as two:
        one.session = two.session = ""
        for channels, name in ((one, "one"), (two, "two")):
            content = {"code": "", "user_expressions": {"who": repr(name)}}
            channels.send("shell", "execute_request", content, msg_id="same")
        for channels, name in ((one, "one"), (two, "two")):
            messages = all_until_idle(channels, channels.submit("pass"))
            replies = [
                each["content"]["user_expressions"]["who"]["data"]["text/plain"]
                for each in messages
                if each["channel"] == "shell" and each["parent_header"]["msg_id"] == "same"
            ]
            assert replies == [repr(name)]


def test_one_msg_id_on_two_channels(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel) as one, relay.connect("alpha", kernel) as two:
        one.session = two.session = ""
        content = {"code": "import time; time.sleep(1)"}
        one.send("shell", "execute_request", content, msg_id="on both")
        until(one, answers("on both", "execute_input"))
        two.send("control", "kernel_info_request", {}, msg_id="on both")
        reply = until(two, lambda message: message["channel"] != "iopub")
        assert (reply["channel"], reply["header"]["msg_type"]) == ("control", "kernel_info_reply")
        reply = until(one, lambda message: message["channel"] != "iopub")
        assert (reply["channel"], reply["header"]["msg_type"]) == ("shell", "execute_reply")


@pytest.mark.guarantee(v1=True, unread=True)
@both
@pytest.mark.parametrize("unread", [False, True], ids=["read", "unread"])
def test_the_newest_websocket_of_a_session_wins(
    relay: RunningRelay, kernel: str, v1: bool, unread: bool
) -> None:
    session = f"twice-{v1}-{unread}"
    with relay.connect("alpha", kernel, v1=v1, session=session) as old:
        if unread:
            # More than what waits between kernel and client has room for.
            run_unread(relay, kernel, old, "for i in range(300): print('x' * 100_000, flush=True)")
        pending = old.submit("import time; time.sleep(1); print('late')")
        with relay.connect("alpha", kernel, v1=v1, session=session) as new:
            # The reply to what the old one asked, too.
            assert new.collect(pending).stdout == "late\n"
            assert new.execute("print('new')").stdout == "new\n"
            if unread:
                old.socket.close_socket()  # it would wait for its closing handshake
            else:
                closed = closed_by_server(old.socket)
                assert closed.rcvd is not None
                assert closed.rcvd.code == 1000
                assert "newer connection" in closed.rcvd.reason


# --- pings ----------------------------------------------------------------------------------


def test_pings_both_ways(small: RunningRelay) -> None:
    kernel = small.start_kernel("alpha")
    with watched(small, kernel, compression=None) as socket:
        assert socket.ping("are you there").wait(10)
        before = socket.frames.count(Opcode.PING)
        time.sleep(6 * PING_INTERVAL)
        assert 4 <= socket.frames.count(Opcode.PING) - before <= 7
        assert Channels(socket, "s").execute("print(1)").stdout == "1\n"


# --- much -----------------------------------------------------------------------------------


@both
def test_a_message_of_20_mb(relay: RunningRelay, kernel: str, v1: bool) -> None:
    code = NOISE.format(10 * MIB) + "\ndisplay({'text/plain': noise.hex()}, raw=True)"
    options = {"subprotocols": [V1] if v1 else None, "compression": None}
    with watched(relay, kernel, **options) as socket:
        done = Channels(socket, "s").execute(code)
    (shown,) = done.of("display_data")
    assert shown["content"]["data"]["text/plain"] == noise(10 * MIB).hex()
    # In pieces, so that it stalls nobody else.
    assert socket.frames.count(Opcode.CONT) >= 100


class Memory:
    """Notes how much memory each process takes at the most."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before = self._now()
        self._most = dict(self._before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _now(self) -> dict[str, int]:
        return {name: each.memory_info().rss for name, each in self._processes.items()}

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._most = {name: max(now, self._most[name]) for name, now in self._now().items()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> dict[str, float]:
        """In MiB."""
        return {name: (most - self._before[name]) / MIB for name, most in self._most.items()}


def watch_memory(relay: RunningRelay, kernel: str) -> Memory:
    record = record_of(relay, kernel)
    edge = {f"edge {number}": pid for number, pid in enumerate(relay.info.pids.edge)}
    return Memory({**edge, "agent": relay.agent_pid("alpha"), "holder": record.holder_pid})


def shown(messages: list[Message]) -> list[int]:
    """The numbers that `NUMBERED` shows."""
    return [
        int(each["content"]["data"]["text/plain"].partition(" ")[0])
        for each in messages
        if each["header"]["msg_type"] == "display_data"
    ]


NUMBERED = "for i in range({}): display({{'text/plain': f'{{i}} ' + 'x' * {}}}, raw=True)"


@pytest.mark.guarantee
def test_slow_readers_keep_nobody_waiting_and_cost_no_memory(
    relay: RunningRelay, kernel: str
) -> None:
    number = 200
    # Not much faster than a busy machine takes it: what waits in ZMQ is not what this is about.
    code = NUMBERED.format(number, MIB) + "; time.sleep(0.01)"
    with (
        watch_memory(relay, kernel) as memory,
        relay.connect("alpha", kernel) as slow,
        relay.connect("alpha", kernel, v1=False) as slow_too,
        relay.connect("alpha", kernel) as fast,
    ):
        done = fast.execute(f"import time\n{code}")
        assert shown(done.messages) == list(range(number))
        # What they read now waited in the journal meanwhile.
        msg_id = done.messages[0]["parent_header"]["msg_id"]
        for late in (slow, slow_too):
            assert shown(all_until_idle(late, msg_id)) == list(range(number))
    # A part of the 200 MiB that nobody had read.
    assert max(memory.growth.values()) < 100, memory.growth


@pytest.mark.guarantee
def test_whoever_falls_behind_the_journal_is_told(small: RunningRelay) -> None:
    number = 1500
    # Slower than it could: of what waits in a kernel's own PUB socket, it drops all beyond 1,000
    # messages, on a machine that is busy enough.
    code = NUMBERED.format(number, 20_000) + "; time.sleep(0.002)"
    kernel = small.start_kernel("alpha")
    with small.connect("alpha", kernel) as slow:
        slow.execute("import time")
        msg_id = run_unread(small, kernel, slow, code)
        came = Execution(all_until_idle(slow, msg_id))
        assert slow.execute("print('still here')").stdout == "still here\n"
    numbers = shown(came.messages)
    # Nothing else is on stderr, and nothing at all on stdout.
    assert {each["content"]["name"] for each in came.of("stream")} == {"stderr"}
    notice = r"\[relay\] .*?(\d+) messages are missing here.* \(journal\.bytes = 2097152\)\.\n"
    missing = [int(number) for number in re.findall(notice, came.stderr)]
    assert len(missing) == len(came.stderr.splitlines())
    assert sum(missing) == number - len(numbers)
    assert 0 < len(numbers) < number
    assert all(before < after for before, after in pairwise(numbers))
    # The notice belongs to the cell whose output is missing, so that it is seen there.
    assert {each["parent_header"].get("msg_id") for each in came.messages} == {msg_id}
    assert came.replies


# --- coming back ----------------------------------------------------------------------------


@pytest.mark.guarantee(v1=True, how="is cut off", back="while it prints")
@both
@pytest.mark.parametrize("how", ["says goodbye", "is cut off"])
@pytest.mark.parametrize("back", ["while it prints", "when it is over"])
def test_a_client_that_comes_back_has_missed_nothing(
    relay: RunningRelay, kernel: str, v1: bool, how: str, back: str
) -> None:
    lines = [str(number) for number in range(200)]
    left, returned, done = (relay.folder / secrets.token_hex(8) for _ in range(3))
    code = f"""
import pathlib, time
def wait_for(path):
    while not pathlib.Path(path).exists(): time.sleep(0.01)

for i in range(200):
    if i == 60: wait_for({str(left)!r})
    if i == 180: wait_for({str(returned)!r})
    # In one piece, which print alone does not promise.
    print(f"{{i}}\\n", end="", flush=True)
    time.sleep(0.002)
pathlib.Path({str(done)!r}).touch()"""
    before = Execution([])
    with relay.connect("alpha", kernel, v1=v1) as channels:
        msg_id = channels.submit(code)
        while before.stdout.count("\n") < 60:
            before.messages.append(channels.receive())
        if how == "is cut off":
            left.touch()
            while before.stdout.count("\n") < 80:
                before.messages.append(channels.receive())
            channels.socket.close_socket()
            # What has come is there to be read.
            with pytest.raises(ConnectionClosed):
                read_on(channels, before.messages)
        else:
            # By then it has been asked how far it has come.
            time.sleep(0.5)
    left.touch()
    if back == "when it is over":
        returned.touch()
        wait_for("the cell's end", done.exists)
    with relay.connect("alpha", kernel, v1=v1, session=channels.session) as channels:
        returned.touch()
        after = channels.collect(msg_id)
        assert channels.execute("print('on')").stdout == "on\n"
    counted = count_lines(before.stdout + after.stdout, lines)
    assert (counted.lost, counted.out_of_order, counted.strange) == (0, 0, 0)
    if how == "says goodbye":
        # Whoever is cut off in the middle may hear again what it has not proved to have.
        assert counted.repeated == 0
    assert len(after.replies) == 1
    assert after.states[-1] == "idle"
