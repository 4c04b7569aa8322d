from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.agent.channels.transcoder import Transcoder
from relay.agent.holders.client import AdmittedPrincipal, HolderEndpoint
from relay.bridge import ws_codec
from relay.bridge.control import Attach, Attached, Close, Detach, Disconnect, Position
from relay.bridge.messages import Channel, Message
from relay.bridge.records import (
    BUSY,
    HEADER,
    Entry,
    RecordKind,
    entries_record,
    message_record,
    number_record,
    read_frames,
    read_struct,
    read_submit,
    record,
    struct_record,
)
from relay.bridge.ws_codec import FRAGMENT_SIZE, Subprotocol
from relay.streams import read_record
from tests.virtualtime import settle, virtual

V1, LEGACY = Subprotocol.V1, Subprotocol.LEGACY
ADA = AdmittedPrincipal("token:ada")
EPOCH = "e1"
HEAD = Position(EPOCH, 0)
MAX_RECORD = 2**23
JSON_HEADER = b'{"msg_id": "m", "msg_type": "stream", "session": "k"}'


class End:
    """A neighbour's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *records: bytes) -> None:
        self._writer.write(b"".join(records))

    async def next(self) -> tuple[RecordKind, bytes]:
        async with asyncio.timeout(1):
            return await read_record(self._reader, MAX_RECORD)

    async def ended(self) -> bool:
        """Whether the other side hung up; fails where it says something else first."""
        async with asyncio.timeout(1):
            return await self._reader.read(1) == b""

    def close(self) -> None:
        self._writer.close()


class Bench:
    """Channels between an edge and a holder, both in the hands of the test."""

    edge: End
    holder: End
    channels: Transcoder
    task: asyncio.Task[None]
    busy = False

    async def frames(self) -> tuple[int, int, bytes]:
        kind, payload = await self.edge.next()
        assert kind is RecordKind.FRAMES
        seq, fragment, frames = read_frames(payload)
        return seq, fragment, bytes(frames)

    async def frames_until(self, seq: int) -> list[tuple[int, int, bytes]]:
        found = [await self.frames()]
        while found[-1][:2] != (seq, 0):
            found.append(await self.frames())
        return found

    async def closed(self) -> Close:
        kind, payload = await self.edge.next()
        assert kind is RecordKind.CLOSE
        return read_struct(payload, Close)


@asynccontextmanager
async def connected(
    tmp_path: Path,
    *,
    message_bytes: int = MAX_RECORD,
    max_record: int = MAX_RECORD,
    admission: AdmittedPrincipal = ADA,
) -> AsyncIterator[Bench]:
    """Channels that have been started but not asked for anything."""
    bench = Bench()
    path = tmp_path / "holder.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bench.holder = End(reader, writer)

    server = await asyncio.start_unix_server(serve, path)
    near, far = socket.socketpair()
    bench.edge = End(*await asyncio.open_unix_connection(sock=far))
    streams = await asyncio.open_unix_connection(sock=near)
    bench.channels = Transcoder(
        streams,
        message_bytes=message_bytes,
        gateway_bytes=1000,
        max_record=max_record,
        is_busy=lambda: bench.busy,
    )
    async with asyncio.TaskGroup() as tasks:
        bench.task = tasks.create_task(
            bench.channels.run(HolderEndpoint(path, os.geteuid()), admission)
        )
        yield bench
        bench.edge.close()
        async with asyncio.timeout(1):
            await bench.task
        if hasattr(bench, "holder"):
            bench.holder.close()
    server.close()
    await settle()


@asynccontextmanager
async def attached(
    tmp_path: Path,
    subprotocol: Subprotocol = V1,
    start: Position = HEAD,
    *,
    message_bytes: int = MAX_RECORD,
    max_record: int = MAX_RECORD,
) -> AsyncIterator[Bench]:
    """Channels that edge and holder have agreed on."""
    async with connected(tmp_path, message_bytes=message_bytes, max_record=max_record) as bench:
        attach = Attach(link="ab", principal="token:ada", subprotocol=subprotocol.value)
        bench.edge.send(struct_record(RecordKind.ATTACH, attach))
        await settle()
        await bench.holder.next()
        answer = struct_record(RecordKind.ATTACHED, Attached(position=start, acknowledged=3))
        bench.holder.send(answer)
        assert record(*await bench.edge.next()) == answer
        yield bench


def entry(seq: int, content: bytes, *buffers: bytes, channel: Channel = Channel.IOPUB) -> Entry:
    return Entry(seq, channel, (JSON_HEADER, b"{}", b"{}", content, *buffers))


def uncut(subprotocol: Subprotocol, item: Entry) -> list[bytes]:
    """The frames of a message that nothing interrupts."""
    header, parent, metadata, content, *buffers = item.parts
    message = Message(item.channel, header, parent, metadata, content, tuple(buffers))
    return list(ws_codec.frames(ws_codec.encode(subprotocol, message)))


def lengthy(fragments: int) -> bytes:
    """JSON that makes a message of so many fragments, no two of them alike."""
    numbers = b"".join(struct.pack(">I", n) for n in range((fragments * FRAGMENT_SIZE) // 8 - 200))
    return b'"' + numbers.hex().encode() + b'"'


SMALL = [entry(n, b'{"n": %d}' % n, *([b"\0\xff"] if n % 2 else [])) for n in range(1, 6)]
CUTS = [
    (V1, entry(7, lengthy(4))),
    (V1, entry(7, b"{}", lengthy(2), b"", lengthy(1))),
    (LEGACY, entry(7, lengthy(4))),
    (LEGACY, entry(7, lengthy(1), lengthy(3))),
]


# Attaching


@pytest.mark.parametrize("views_only", [False, True])
@pytest.mark.parametrize("granted", [False, True])
@virtual
async def test_who_attaches_and_what_they_may_the_ticket_says(
    tmp_path: Path, views_only: bool, granted: bool
) -> None:
    attach = Attach(
        link="ab",
        principal="token:mallory",
        # What an edge says of it is nothing.
        views_only=not views_only,
        granted=not granted,
        session_id="s",
        subprotocol=V1.value,
        position=Position(EPOCH, 3, 1),
        request_id="r",
    )
    admission = AdmittedPrincipal("token:ada", views_only, granted)
    async with connected(tmp_path, admission=admission) as bench:
        bench.edge.send(struct_record(RecordKind.ATTACH, attach))
        await settle()
        kind, payload = await bench.holder.next()
        assert kind is RecordKind.ATTACH
        assert read_struct(payload, Attach) == Attach(
            link="ab",
            principal="token:ada",
            views_only=views_only,
            granted=granted,
            session_id="s",
            subprotocol=V1.value,
            position=Position(EPOCH, 3, 1),
            request_id="r",
        )


@pytest.mark.parametrize(
    "first",
    [
        struct_record(RecordKind.ATTACH, Attach(link="ab", principal="p", subprotocol="v2")),
        record(RecordKind.ATTACH, b"{}"),
        record(RecordKind.PING),
        number_record(RecordKind.PROVED, 1),
        b"\0\0\0\0\xff",
        HEADER.pack(2**32 - 1, RecordKind.ATTACH),
    ],
)
@virtual
async def test_a_link_that_begins_with_something_else_ends(tmp_path: Path, first: bytes) -> None:
    async with connected(tmp_path) as bench:
        bench.edge.send(first)
        assert await bench.edge.ended()
        assert not hasattr(bench, "holder")


@virtual
async def test_an_edge_that_says_nothing_may_leave(tmp_path: Path) -> None:
    async with connected(tmp_path) as bench:
        bench.edge.close()
        await bench.task


@virtual
async def test_without_a_holder_the_link_ends(tmp_path: Path) -> None:
    async with connected(tmp_path) as bench:
        (tmp_path / "holder.sock").unlink()
        bench.edge.send(struct_record(RecordKind.ATTACH, Attach(link="ab", principal="p")))
        assert await bench.edge.ended()


# Other versions


@virtual
async def test_an_edge_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    async with connected(tmp_path) as bench:
        attach = Attach(link="ab", principal="p", subprotocol=V1.value, version=2)
        bench.edge.send(struct_record(RecordKind.ATTACH, attach))
        close = await bench.closed()
        assert close.code == 1012
        assert "The edge has version 2 of the relay's records, the agent has version 1." in (
            close.reason
        )
        assert not hasattr(bench, "holder")


@virtual
async def test_a_holder_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    async with connected(tmp_path) as bench:
        attach = Attach(link="ab", principal="p", subprotocol=V1.value)
        bench.edge.send(struct_record(RecordKind.ATTACH, attach))
        await settle()
        await bench.holder.next()
        bench.holder.send(record(RecordKind.ATTACHED, b'{"version":2,"at":"e1-0"}'))
        close = await bench.closed()
        assert close.code == 1012
        assert "The kernel's holder has version 2 of" in close.reason
        bench.edge.close()
        assert await bench.holder.ended()


@virtual
async def test_an_edge_that_is_refused_hears_it_though_it_has_said_more(tmp_path: Path) -> None:
    async with connected(tmp_path) as bench:
        attach = Attach(link="ab", principal="p", version=2)
        bench.edge.send(struct_record(RecordKind.ATTACH, attach), record(RecordKind.PING) * 1000)
        await settle()
        assert (await bench.closed()).code == 1012
        assert not bench.task.done()


# Towards the client


@pytest.mark.parametrize("subprotocol", Subprotocol)
@virtual
async def test_entries_become_frames_in_one_record(
    tmp_path: Path, subprotocol: Subprotocol
) -> None:
    async with attached(tmp_path, subprotocol) as bench:
        bench.holder.send(entries_record(SMALL))
        expected = b"".join(frame for item in SMALL for frame in uncut(subprotocol, item))
        assert await bench.frames() == (5, 0, expected)


@virtual
async def test_seqs_may_have_holes(tmp_path: Path) -> None:
    # What other sessions asked is not for this client.
    async with attached(tmp_path) as bench:
        bench.holder.send(entries_record([entry(3, b"1"), entry(9, b"2")]))
        assert (await bench.frames())[:2] == (9, 0)
        bench.holder.send(entries_record([entry(20, b"3")]))
        assert await bench.frames() == (20, 0, *uncut(V1, entry(20, b"3")))


@virtual
async def test_a_record_is_sent_off_when_it_is_large_enough(tmp_path: Path) -> None:
    many = [entry(n, b"1" * 20_000) for n in range(1, 31)]
    async with attached(tmp_path) as bench:
        bench.holder.send(entries_record(many))
        found = await bench.frames_until(30)
    sizes = [len(frames) for _, _, frames in found]
    assert all(128 * 1024 <= size < 128 * 1024 + 21_000 for size in sizes[:-1])
    assert [seq for seq, _, _ in found] == [7, 14, 21, 28, 30]
    assert b"".join(frames for _, _, frames in found) == b"".join(
        frame for item in many for frame in uncut(V1, item)
    )


@pytest.mark.parametrize(("subprotocol", "large"), CUTS)
@virtual
async def test_a_large_message_is_sent_in_fragments_with_their_position(
    tmp_path: Path, subprotocol: Subprotocol, large: Entry
) -> None:
    frames = uncut(subprotocol, large)
    assert len(frames) > 2
    async with attached(tmp_path, subprotocol) as bench:
        bench.holder.send(entries_record([entry(4, b"1"), large, entry(8, b"2")]))
        found = await bench.frames_until(8)
    # In the middle of 7 the client stands behind 4, and behind so many frames of the next.
    assert [position[:2] for position in found] == [
        *((4, fragment) for fragment in range(1, len(frames))),
        *([(7, 0)] if len(frames[-1]) >= 128 * 1024 else []),
        (8, 0),
    ]
    rest = uncut(subprotocol, entry(4, b"1")) + frames + uncut(subprotocol, entry(8, b"2"))
    assert b"".join(part for _, _, part in found) == b"".join(rest)


@pytest.mark.parametrize(("subprotocol", "large"), CUTS)
@virtual
async def test_the_next_agent_goes_on_at_every_fragment(
    tmp_path: Path, subprotocol: Subprotocol, large: Entry
) -> None:
    frames = uncut(subprotocol, large)
    after = uncut(subprotocol, entry(8, b"2"))
    for sent in range(len(frames)):
        folder = tmp_path / str(sent)
        folder.mkdir()
        async with attached(folder, subprotocol, Position(EPOCH, 4, sent)) as bench:
            bench.holder.send(entries_record([large, entry(8, b"2")]))
            found = await bench.frames_until(8)
        assert b"".join(part for _, _, part in found) == b"".join(frames[sent:] + after)
        assert all(seq != 4 or fragment > sent for seq, fragment, _ in found)


@pytest.mark.parametrize("subprotocol", Subprotocol)
@virtual
async def test_the_next_agent_goes_on_wherever_a_record_ended(
    tmp_path: Path, subprotocol: Subprotocol
) -> None:
    journal = [
        *SMALL,
        entry(7, lengthy(2)),
        entry(9, lengthy(1)),
        entry(10, b"1"),
        entry(12, lengthy(3)),
    ]

    async def read_from(start: Position, folder: Path) -> list[tuple[int, int, bytes]]:
        folder.mkdir()
        async with attached(folder, subprotocol, start) as bench:
            bench.holder.send(entries_record(e for e in journal if e.seq > start.seq))
            return await bench.frames_until(12)

    whole = await read_from(Position(EPOCH, 0), tmp_path / "whole")
    assert len(whole) > 4
    for number, (seq, fragment, _) in enumerate(whole[:-1], 1):
        rest = await read_from(Position(EPOCH, seq, fragment), tmp_path / str(number))
        assert b"".join(part for _, _, part in rest) == b"".join(p for *_, p in whole[number:])


@virtual
async def test_a_clients_slowness_stops_the_holder(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        # Nobody reads at the edge: sooner or later nothing more is taken from the holder.
        for seq in range(1, 200):
            bench.holder.send(entries_record([entry(seq, b"1" * 100_000)]))
            await settle()
        waiting = bench.holder._writer.transport.get_write_buffer_size()
        assert waiting > 10_000_000
        await bench.frames_until(199)


@virtual
async def test_word_of_a_message_over_the_limit_comes_in_its_place(tmp_path: Path) -> None:
    async with attached(tmp_path, LEGACY, message_bytes=500) as bench:
        bench.holder.send(entries_record([entry(1, b"1"), entry(2, b"2" * 500), entry(3, b"3")]))
        seq, fragment, frames = await bench.frames()
        assert (seq, fragment) == (3, 0)
        before, after = (b"".join(uncut(LEGACY, entry(n, b"%d" % n))) for n in (1, 3))
        assert frames.startswith(before)
        assert frames.endswith(after)
        assert b"kernels.message_bytes" in frames
        assert b"222" not in frames


@virtual
async def test_the_limit_is_the_payloads(tmp_path: Path) -> None:
    (frame,) = uncut(V1, entry(1, b"1" * 100))
    size = len(frame) - 4
    async with attached(tmp_path, V1, message_bytes=size) as bench:
        bench.holder.send(entries_record([entry(1, b"1" * 100), entry(2, b"1" * 101)]))
        seq, _, frames = await bench.frames()
        assert seq == 2
        assert frames.startswith(frame)
        assert b"kernels.message_bytes" in frames[len(frame) :]


@virtual
async def test_a_record_over_the_limit_closes_the_client_too(tmp_path: Path) -> None:
    # Else the edge would attach again, and meet the same record again, for ever.
    async with attached(tmp_path, message_bytes=500, max_record=1000) as bench:
        bench.holder.send(entries_record([entry(1, b"1" * 2000)]))
        assert (await bench.closed()).code == 1009
        assert await bench.edge.ended()


@virtual
async def test_what_cannot_be_encoded_closes_the_client(tmp_path: Path) -> None:
    bad = Entry(2, Channel.SHELL, (b"[]", b"{}", b"{}", b"{}"))
    async with attached(tmp_path, LEGACY) as bench:
        bench.holder.send(entries_record([bad]))
        assert (await bench.closed()).code == 1007


@virtual
async def test_acknowledgements_are_handed_on(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        bench.holder.send(number_record(RecordKind.ACK, 4), entries_record([entry(1, b"1")]))
        assert record(*await bench.edge.next()) == number_record(RecordKind.ACK, 4)
        assert (await bench.frames())[:2] == (1, 0)


@virtual
async def test_the_holders_close_is_the_last_word(tmp_path: Path) -> None:
    close = struct_record(RecordKind.CLOSE, Close(1000, "replaced"))
    async with attached(tmp_path) as bench:
        bench.holder.send(entries_record([entry(1, b"1")]), close, number_record(RecordKind.ACK, 4))
        assert (await bench.frames())[:2] == (1, 0)
        assert await bench.closed() == Close(1000, "replaced")
        assert await bench.edge.ended()
        assert await bench.holder.ended()


# Towards the kernel


def document(content: object = None) -> bytes:
    return json.dumps(
        {"channel": "shell", "header": {"msg_id": "m"}, "content": content or {}}
    ).encode()


def in_v1(*parts: bytes) -> bytes:
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


@virtual
async def test_a_v1_message_is_taken_apart(tmp_path: Path) -> None:
    payload = in_v1(b"control", JSON_HEADER, b"{}", b'{"a": 1}', b"[]", b"\0", b"")
    async with attached(tmp_path) as bench:
        bench.edge.send(message_record(9, text=False, payload=payload))
        kind, payload = await bench.holder.next()
        assert kind is RecordKind.SUBMIT
        number, channel, parts = read_submit(payload)
        assert (number, channel) == (9, Channel.CONTROL)
        assert [bytes(part) for part in parts] == [
            *(JSON_HEADER, b"{}", b'{"a": 1}', b"[]", b"\0", b"")
        ]


@pytest.mark.parametrize("text", [True, False])
@virtual
async def test_a_legacy_message_is_taken_apart(tmp_path: Path, text: bool) -> None:
    payload = document({"code": "1"})
    if not text:
        payload = struct.pack(">3I", 2, 12, 12 + len(payload)) + payload + b"buffer"
    async with attached(tmp_path, LEGACY) as bench:
        bench.edge.send(message_record(1, text=text, payload=payload))
        kind, submitted = await bench.holder.next()
        assert kind is RecordKind.SUBMIT
        _, channel, (header, _, _, content, *buffers) = read_submit(submitted)
        assert channel is Channel.SHELL
        assert bytes(header) == b'{"msg_id": "m"}'
        assert bytes(content) == b'{"code": "1"}'
        assert buffers == ([] if text else [b"buffer"])


MALFORMED: list[tuple[Subprotocol, bool, bytes]] = [
    (V1, False, b""),
    (V1, False, struct.pack("<Q", 2**63)),
    (V1, False, in_v1(b"heartbeat", b"{}", b"{}", b"{}", b"{}")),
    (LEGACY, True, b"{}"),
    (LEGACY, True, b"not JSON"),
    (LEGACY, True, b"[" * 100_000),
    (LEGACY, False, struct.pack(">I", 2**32 - 1)),
]


@pytest.mark.parametrize(("subprotocol", "text", "payload"), MALFORMED)
@virtual
async def test_a_malformed_message_closes_the_client(
    tmp_path: Path, subprotocol: Subprotocol, text: bool, payload: bytes
) -> None:
    async with attached(tmp_path, subprotocol) as bench:
        bench.edge.send(
            message_record(1, text=text, payload=payload),
            # The edge hears of it only after it has sent more; were this not read, the
            # connection would be reset and the reason lost.
            *[message_record(2, text=False, payload=bytes(100_000))] * 30,
        )
        assert (await bench.closed()).code == 1007
        with pytest.raises(TimeoutError):
            await bench.edge.ended()
        bench.edge.close()
        assert await bench.holder.ended()


@virtual
async def test_a_clients_record_over_the_limit_closes_the_client(tmp_path: Path) -> None:
    async with attached(tmp_path, max_record=1000) as bench:
        bench.edge.send(message_record(1, text=False, payload=bytes(2000)))
        assert (await bench.closed()).code == 1009
        bench.edge.close()
        assert await bench.holder.ended()


@virtual
async def test_a_proof_is_handed_on(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        bench.edge.send(number_record(RecordKind.PROVED, 7))
        assert record(*await bench.holder.next()) == number_record(RecordKind.PROVED, 7)


@virtual
async def test_a_ping_is_answered_here(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        bench.edge.send(record(RecordKind.PING))
        assert await bench.edge.next() == (RecordKind.PONG, b"")


@virtual
async def test_a_sign_of_life_says_whether_the_kernel_is_busy(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        for busy, says in ((True, BUSY), (False, b"")):
            bench.busy = busy
            bench.edge.send(record(RecordKind.PING))
            assert await bench.edge.next() == (RecordKind.PONG, says)


@pytest.mark.parametrize("disconnect", [None, *Disconnect])
@virtual
async def test_a_goodbye_is_handed_on_and_ends_the_link(
    tmp_path: Path, disconnect: Disconnect | None
) -> None:
    detach = Detach(disconnect=disconnect, seq=7, fragment=1)
    async with attached(tmp_path) as bench:
        bench.edge.send(
            struct_record(RecordKind.DETACH, detach), number_record(RecordKind.PROVED, 1)
        )
        kind, payload = await bench.holder.next()
        assert (kind, read_struct(payload, Detach)) == (RecordKind.DETACH, detach)
        assert await bench.holder.ended()
        assert await bench.edge.ended()


# Ends

FROM_THE_EDGE = {RecordKind.MESSAGE, RecordKind.PROVED, RecordKind.DETACH, RecordKind.PING}
FROM_THE_HOLDER = {RecordKind.ENTRIES, RecordKind.ATTACHED, RecordKind.ACK, RecordKind.CLOSE}


def others(kinds: Iterable[RecordKind]) -> list[RecordKind]:
    return [kind for kind in RecordKind if kind not in kinds]


@pytest.mark.parametrize("kind", others(FROM_THE_EDGE))
@virtual
async def test_an_edge_that_sends_what_it_may_not_is_hung_up(
    tmp_path: Path, kind: RecordKind
) -> None:
    async with attached(tmp_path) as bench:
        bench.edge.send(record(kind))
        assert await bench.edge.ended()
        assert await bench.holder.ended()


@pytest.mark.parametrize("kind", others(FROM_THE_HOLDER))
@virtual
async def test_a_holder_that_sends_what_it_may_not_is_hung_up(
    tmp_path: Path, kind: RecordKind
) -> None:
    async with attached(tmp_path) as bench:
        bench.holder.send(record(kind))
        assert await bench.edge.ended()
        assert await bench.holder.ended()


def hang_up_edge(bench: Bench) -> End:
    bench.edge.close()
    return bench.holder


def hang_up_holder(bench: Bench) -> End:
    bench.holder.close()
    return bench.edge


def end_links(bench: Bench) -> End:
    bench.channels.close()
    return bench.edge


@pytest.mark.parametrize("hang_up", [hang_up_edge, hang_up_holder, end_links])
@virtual
async def test_when_one_side_is_gone_the_other_hears_of_it(
    tmp_path: Path, hang_up: Callable[[Bench], End]
) -> None:
    async with attached(tmp_path) as bench:
        assert await hang_up(bench).ended()
        async with asyncio.timeout(1):
            await bench.task


@virtual
async def test_one_side_that_is_gone_in_the_middle_of_a_record_is_gone(tmp_path: Path) -> None:
    async with attached(tmp_path) as bench:
        bench.edge.send(message_record(1, text=True, payload=document())[:-1])
        bench.edge.close()
        assert await bench.holder.ended()
