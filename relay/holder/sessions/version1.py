"""Unfinished requests in a folder of version 1, which has them in a log of their own.

A line of ``requests.log`` is ``[number, request or null, answered]``: a new request, or that the
one of that number was answered, or else that the kernel was idle after it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from relay.bridge.events import NO_HEADER
from relay.bridge.messages import Channel
from relay.bridge.requests import KernelRequest, RequestIds, UnfinishedRequests
from relay.bridge.session import SessionsSnapshot


class LeftRequest(msgspec.Struct, array_like=True):
    """One request as version 1 writes it, and what has come of it."""

    channel: Channel
    header: msgspec.Raw
    msg_id: str
    session: str
    msg_type: str
    subshell: str
    answered: bool = False
    idle: bool = False

    @property
    def ids(self) -> RequestIds:
        """What a reply is matched by."""
        return self.channel, self.subshell, self.msg_id, self.session


class _Line(msgspec.Struct, array_like=True):
    number: int
    new: LeftRequest | None = None
    answered: bool = False


_LINE: Final = msgspec.json.Decoder(_Line)


def read_requests(path: Path) -> Sequence[LeftRequest]:
    """What an earlier holder had not seen finished; nothing where that cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found: dict[int, LeftRequest] = {}
    for text in lines:
        try:
            line = _LINE.decode(text)
        except msgspec.MsgspecError:
            # Torn: nothing was written behind it.
            break
        if line.new is not None:
            found[line.number] = line.new
        elif (left := found.get(line.number)) is not None:
            left.answered = left.answered or line.answered
            left.idle = left.idle or not line.answered
            if left.answered and left.idle:
                del found[line.number]
    return list(found.values())


def add_waiting(requests: UnfinishedRequests, snapshot: SessionsSnapshot) -> None:
    """Take up the requests in a table of version 1, which knows their ids and askers only."""
    for waiting in snapshot.waiting:
        for asker in waiting.keys:
            requests.add(_known_by_ids(requests.last_number + 1, asker, waiting.request))


def _known_by_ids(number: int, asker: bytes, ids: RequestIds) -> KernelRequest:
    channel, subshell, msg_id, session = ids
    return KernelRequest(number, asker, channel, NO_HEADER, msg_id, session, "", subshell)


def join(requests: UnfinishedRequests, left: Sequence[LeftRequest]) -> None:
    """Put together what is known of requests: here who asked, in ``left`` what has come of them.

    A request that is unanswered in one of the two only has been answered: the journal has the
    reply, and the other file was not written any more.
    """
    askers: defaultdict[RequestIds, deque[bytes]] = defaultdict(deque)
    for request in requests:
        if not request.answered:
            askers[request.ids].append(request.asker)
    requests.clear()
    joined = []
    for each in left:
        waiting = askers[each.ids] if not each.answered else None
        asker = waiting.popleft() if waiting else b""
        joined.append((each, asker))
    for ids, rest in askers.items():
        for asker in rest:
            # A reply still finds its way; without a header none can be made up.
            requests.add(_known_by_ids(requests.last_number + 1, asker, ids))
    for each, asker in joined:
        if asker or not each.idle:
            requests.add(_joined(requests.last_number + 1, asker, each))


def _joined(number: int, asker: bytes, left: LeftRequest) -> KernelRequest:
    return KernelRequest(
        number,
        asker,
        left.channel,
        left.header,
        left.msg_id,
        left.session,
        left.msg_type,
        left.subshell,
        answered=not asker,
        idle=left.idle,
    )
