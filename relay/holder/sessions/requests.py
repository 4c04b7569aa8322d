"""What a kernel has been asked and has not finished, in a file: for the next holder.

A request is finished when it has been answered and the kernel was idle after it. It is written
before it is sent, and struck out when what finishes it is in the journal. So the holder that
adopts a kernel knows for which replies and idle statuses somebody may be waiting.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from relay.bridge.messages import Buffer, Channel, parse_header

log = structlog.get_logger(__name__)

_HEADER_BYTES: Final = 4096
"""Of a header that is kept; of a larger one only what clients match replies by is."""
_SPARE_LINES: Final = 1000
"""Lines beyond twice the unfinished requests at which the file is written anew."""

RequestQueue = tuple[Channel, str]
"""Channel and subshell ("" for none): in a lane a kernel takes one request after the other."""
MAIN: Final[RequestQueue] = (Channel.SHELL, "")


class KernelRequest(msgspec.Struct, array_like=True):
    """One request, and what has come of it."""

    channel: Channel
    header: msgspec.Raw
    msg_id: str
    session: str
    msg_type: str
    subshell: str
    answered: bool = False
    idle: bool = False

    @property
    def lane(self) -> RequestQueue:
        """Where it queues."""
        return self.channel, self.subshell

    @property
    def finished(self) -> bool:
        """Whether nobody waits for anything of it."""
        return self.answered and self.idle


class _Line(msgspec.Struct, array_like=True):
    """What happened to the request of that number: it is new, was answered, or idle followed."""

    number: int
    new: KernelRequest | None = None
    answered: bool = False


_LINE: Final = msgspec.json.Decoder(_Line)


def request(channel: Channel, header: Buffer) -> KernelRequest:
    """A request by its header. Raises `MalformedMessage`."""
    parsed = parse_header(header)
    # The file has one request a line; JSON may be written on several.
    raw = bytes(header).replace(b"\n", b" ").replace(b"\r", b" ")
    if len(raw) > _HEADER_BYTES:
        names = ("msg_id", "msg_type", "session")
        raw = msgspec.json.encode({name: getattr(parsed, name) for name in names})
    return KernelRequest(
        channel,
        msgspec.Raw(raw),
        parsed.msg_id,
        parsed.session,
        parsed.msg_type,
        # What is no name no kernel knows; it is in nobody's way in a lane of its own.
        parsed.subshell,
    )


class RequestStore:
    """The unfinished requests of one kernel, the ``limit`` newest of them, oldest first.

    Trouble with the disk is logged, and costs the next holder its knowledge only.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """Take up what an earlier holder left in ``path``."""
        self._path = path
        self._limit = limit
        self._open: dict[int, KernelRequest] = {}
        self._numbers: dict[tuple[str, str], list[int]] = {}
        """By ``msg_id`` and ``session``, which clients may use again."""
        self._last = 0
        self._lines = 0
        self._file: int | None = None
        self._failed = False
        self._read()
        self._rewrite()

    def __iter__(self) -> Iterator[KernelRequest]:
        """The unfinished ones of this moment."""
        return iter(list(self._open.values()))

    def add(self, asked: KernelRequest) -> None:
        """Keep one that is about to be sent."""
        self._last += 1
        self._keep(self._last, asked)
        if len(self._open) > self._limit:
            self._strike(next(iter(self._open)))
        self._write(_Line(self._last, asked))

    def answered(self, channel: Channel, msg_id: str, session: str) -> None:
        """A reply is in the journal."""

        def is_it(each: KernelRequest) -> bool:
            return each.channel is channel and not each.answered

        self._note(msg_id, session, is_it, answered=True)

    def idle(self, msg_id: str, session: str) -> None:
        """That the kernel is idle after this request is in the journal."""
        self._note(msg_id, session, lambda each: not each.idle, answered=False)

    def clear(self) -> None:
        """The kernel process is gone, and with it what it was asked."""
        self._open.clear()
        self._numbers.clear()
        self._rewrite()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _note(
        self, msg_id: str, session: str, is_it: Callable[[KernelRequest], bool], *, answered: bool
    ) -> None:
        for number in self._numbers.get((msg_id, session), ()):
            if is_it(self._open[number]):
                self._apply(number, answered=answered)
                self._write(_Line(number, None, answered))
                return

    def _keep(self, number: int, asked: KernelRequest) -> None:
        self._open[number] = asked
        self._numbers.setdefault((asked.msg_id, asked.session), []).append(number)

    def _apply(self, number: int, *, answered: bool) -> None:
        found = self._open[number]
        if answered:
            found.answered = True
        else:
            found.idle = True
        if found.finished:
            self._strike(number)

    def _strike(self, number: int) -> None:
        gone = self._open.pop(number)
        numbers = self._numbers[gone.msg_id, gone.session]
        numbers.remove(number)
        if not numbers:
            del self._numbers[gone.msg_id, gone.session]

    # The file.

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return
        for text in lines:
            try:
                line = _LINE.decode(text)
            except msgspec.MsgspecError:
                # Torn: what comes after it was written by nobody.
                return
            if line.new is not None:
                self._keep(line.number, line.new)
            elif line.number in self._open:
                self._apply(line.number, answered=line.answered)
            self._last = max(self._last, line.number)

    def _rewrite(self) -> None:
        """Begin the file anew, with what is unfinished."""
        lines = [_Line(number, asked) for number, asked in self._open.items()]
        temporary = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600)
            if self._file is not None:
                os.close(self._file)
            self._file, self._lines = descriptor, len(lines)
            _write_whole(descriptor, b"".join(map(_encode, lines)))
            temporary.replace(self._path)
        except OSError as error:
            self._fail(error)
        else:
            self._failed = False

    def _write(self, line: _Line) -> None:
        self._lines += 1
        if self._file is None or self._lines > 2 * len(self._open) + _SPARE_LINES:
            self._rewrite()
            return
        try:
            _write_whole(self._file, _encode(line))
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            log.error("requests_write_failed", problem=str(error))
        self._failed = True
        # Half a line may be at its end, behind which nothing is read: the next begins it anew.
        self.close()


def _write_whole(file: int, data: bytes) -> None:
    """Raises ``OSError``, also where a full disk took a part only."""
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _encode(line: _Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"
