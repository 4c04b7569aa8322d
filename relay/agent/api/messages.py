"""A kernel's journal over HTTP: one JSON object per line, at the reader's own pace.

Messages are spliced from the bytes that the holder's journal has. A stream that breaks off ends
without HTTP's last chunk (RFC 9112 §7.1), so that no reader takes it for complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Iterator
from typing import Final, NamedTuple

import msgspec
import structlog
from aiohttp import web

from relay import limits
from relay.agent.holders.client import AdmittedPrincipal, HolderEndpoint, connect
from relay.bridge.control import Gap, Read, Reading
from relay.bridge.messages import Buffer
from relay.bridge.openings import AGENT, HOLDER, read_opening, refused
from relay.bridge.records import (
    Entry,
    RecordError,
    RecordKind,
    read_entries,
    read_struct,
    struct_record,
)
from relay.config import PastSettings
from relay.errors import AgentUnavailable, BadRequest, Conflict
from relay.http import NoResponse
from relay.routing.paths import Target
from relay.streams import read_header, read_record

log = structlog.get_logger(__name__)

CONTENT_TYPE: Final = "application/x-ndjson"
_ANSWER: Final = 5.0
"""Seconds that a holder has to tell what is in its journal."""
_CHUNK: Final = 64 * 1024
"""Bytes that are sent at once, about."""
_BASE64: Final = 3 * 16 * 1024
"""Bytes of a buffer that are encoded at once: a multiple of 3, so that nothing is padded within."""
_SINCE: Final = re.compile(r"(?:([0-9a-f]{12})-)?([0-9]{1,18})")
_LIMIT: Final = re.compile(r"[0-9]{1,18}")
_HEARTBEAT: Final = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,6})?")
_FLAGS: Final = {"true": True, "false": False}


class MessagesQuery(NamedTuple):
    """The query of one request."""

    epoch: str | None
    """The journal to which ``after`` belongs; None where the client does not name it."""
    after: int
    limit: int | None
    follow: bool
    heartbeat: float
    """Seconds of silence after which a follower gets an empty line; 0: never."""


def parse(target: Target, settings: PastSettings) -> MessagesQuery:
    """Read the query. Raises `BadRequest` with what is expected."""
    since = _SINCE.fullmatch(_one(target, "since", "0"))
    if since is None:
        raise BadRequest(
            "since is the seq of the last message that you have, 12 or 1a2b3c4d5e6f-12; 0 is the "
            "beginning."
        )
    follow = _FLAGS.get(_one(target, "follow", "false"))
    if follow is None:
        raise BadRequest("follow is true or false.")
    # A follower wants all that comes, unless it names a limit.
    limit = None if follow else settings.limit
    text = _one(target, "limit", "")
    if text or target.values("limit"):
        limit = int(text) if _LIMIT.fullmatch(text) else 0
        if not 1 <= limit <= settings.max_limit:
            limits.record("past.max_limit")
            raise BadRequest(
                f"limit is a number of messages, 1 to {settings.max_limit} (past.max_limit)."
            )
    beat = _one(target, "heartbeat", "0")
    heartbeat = float(beat) if _HEARTBEAT.fullmatch(beat) else 0.0
    return MessagesQuery(since[1], int(since[2]), limit, follow, heartbeat if follow else 0.0)


def _one(target: Target, name: str, default: str) -> str:
    values = target.values(name)
    if len(values) > 1:
        raise BadRequest(f"{name} is there more than once.")
    return values[0] if values else default


class JournalMessages:
    """Answers requests for what kernels have sent before.

    ``message_bytes`` bounds one message, ``max_record`` one record from a holder.
    """

    def __init__(self, settings: PastSettings, *, message_bytes: int, max_record: int) -> None:
        self._settings = settings
        self._message_bytes = message_bytes
        self._max_record = max_record
        self._following: set[asyncio.StreamWriter] = set()

    def break_off(self) -> None:
        """End the streams of followers, which have no end; clients ask again with their seq."""
        for writer in list(self._following):
            writer.close()

    async def answer(
        self,
        request: web.BaseRequest,
        target: Target,
        holder: HolderEndpoint,
        admitted: AdmittedPrincipal,
        request_id: str,
    ) -> web.StreamResponse:
        """Stream the messages. Raises `RelayError` before the first byte only."""
        query = parse(target, self._settings)
        reader, writer = await _connect(holder)
        try:
            read = Read(
                after=query.after,
                limit=query.limit,
                follow=query.follow,
                message_bytes=self._message_bytes,
                principal=admitted.principal,
                granted=admitted.granted,
                request_id=request_id,
            )
            writer.write(struct_record(RecordKind.READ, read))
            epoch = await self._begin(reader, query)
            if request.method == "HEAD":
                return web.Response(content_type=CONTENT_TYPE)
            if query.follow:
                self._following.add(writer)
            return await self._stream(
                request, _MessageLines(reader, epoch, self._max_record), query
            )
        finally:
            self._following.discard(writer)
            writer.close()

    async def _begin(self, reader: asyncio.StreamReader, query: MessagesQuery) -> str:
        """The journal's epoch, where it has the place that the client means.

        Raises `AgentUnavailable` and `Conflict`.
        """
        try:
            async with asyncio.timeout(_ANSWER):
                kind, payload = await read_record(reader, self._max_record)
        except (OSError, EOFError, RecordError, TimeoutError) as error:
            raise _unavailable() from error
        if kind is RecordKind.CLOSE:
            raise refused(payload, HOLDER, AGENT)
        if kind is not RecordKind.READING:
            raise _unavailable()
        reading = read_opening(payload, Reading, HOLDER, AGENT)
        if query.epoch not in {None, reading.epoch} or query.after > reading.last_seq:
            # A beginning from the start would look as if the stream went on.
            raise Conflict(
                "The kernel has said nothing with the seq that since names: it is now at "
                f"{reading.epoch}-{reading.last_seq}. since=0 is the beginning."
            )
        return reading.epoch

    async def _stream(
        self, request: web.BaseRequest, lines: _MessageLines, query: MessagesQuery
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = CONTENT_TYPE
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async with contextlib.aclosing(lines.run(query.heartbeat)) as chunks:
                async for chunk in chunks:
                    await response.write(chunk)
        except (OSError, EOFError, RecordError) as error:
            log.info("messages_broken_off", problem=str(error) or type(error).__name__)
            return NoResponse()
        await response.write_eof()
        return response


class _MessageLines:
    """The lines of one answer, in pieces, as the holder's records come in."""

    def __init__(self, reader: asyncio.StreamReader, epoch: str, max_record: int) -> None:
        self._reader = reader
        self._epoch = epoch
        self._max_record = max_record

    async def run(self, heartbeat: float) -> AsyncGenerator[bytes, None]:
        """Yield pieces of lines. A bad end raises ``EOFError``, ``OSError`` or `RecordError`."""
        while True:
            try:
                async with asyncio.timeout(heartbeat or None):
                    length, kind = await read_header(self._reader, self._max_record)
            except TimeoutError:
                yield b"\n"
                continue
            payload = await self._reader.readexactly(length)
            match kind:
                case RecordKind.ENTRIES:
                    for chunk in _chunks(self._messages(payload)):
                        yield chunk
                case RecordKind.GAP:
                    yield self._gap(read_struct(payload, Gap))
                case RecordKind.CLOSE:
                    return
                case _:
                    msg = f"{kind.name} is not for this connection"
                    raise RecordError(msg)

    def _gap(self, gap: Gap) -> bytes:
        line = {"seq": self._seq(gap.seq), "gap": gap.messages, "setting": gap.setting}
        return msgspec.json.encode(line) + b"\n"

    def _messages(self, payload: bytes) -> Iterator[Buffer]:
        for entry in read_entries(payload):
            yield from message_line(self._seq(entry.seq), entry)

    def _seq(self, seq: int) -> str:
        return f"{self._epoch}-{seq}"


def message_line(seq: str, entry: Entry) -> Iterator[Buffer]:
    """Yield one message as a line of JSON, in pieces; its buffers are in base64."""
    header, parent, metadata, content, *buffers = entry.parts
    yield f'{{"seq":"{seq}","channel":"{entry.channel.wire}"'.encode()
    parts = {"header": header, "parent_header": parent, "metadata": metadata, "content": content}
    for name, part in parts.items():
        yield f',"{name}":'.encode()
        yield _on_one_line(part)
    yield b',"buffers":['
    for number, buffer in enumerate(buffers):
        yield b',"' if number else b'"'
        for start in range(0, len(buffer), _BASE64):
            yield b64encode(buffer[start : start + _BASE64])
        yield b'"'
    yield b"]}\n"


def _on_one_line(part: Buffer) -> Buffer:
    """Return JSON without line breaks, which only stand between its tokens (RFC 8259 §2, §7)."""
    found = bytes(part)
    if b"\n" in found or b"\r" in found:
        return found.replace(b"\n", b" ").replace(b"\r", b" ")
    return found


def _chunks(pieces: Iterator[Buffer]) -> Iterator[bytes]:
    """Join pieces until they are worth sending."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= _CHUNK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _connect(holder: HolderEndpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await connect(holder, 2 * _CHUNK)
    except OSError as error:
        raise _unavailable() from error


def _unavailable() -> AgentUnavailable:
    return AgentUnavailable("The kernel's holder does not answer.", retry_after=1)
