"""What a client heard of its requests, and how that differs from what should have come.

Everything here is pure: who asks, kills and waits is elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from tests.system.channels import Message, count_lines

LARGE: Final = 100_000
"""Characters of a stream message beyond which only its digest is kept."""


def digest(text: str) -> str:
    """What stands for a large text."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


class Heard(NamedTuple):
    """What counts of one message."""

    parent: str
    """The ``msg_id`` of the request that it belongs to."""
    kind: str
    """Its ``msg_type``."""
    text: str = ""
    """What a stream says, or the state of a ``status``."""
    stderr: bool = False
    date: str = ""
    """When the kernel made it, in UTC: ISO 8601 to the microsecond, without the zone."""

    @classmethod
    def of(cls, message: Message) -> Heard:
        """What counts of a message."""
        content: dict[str, Any] = message["content"]
        text = content.get("text") or content.get("execution_state") or ""
        header = message["header"]
        if len(text) > LARGE:
            text = digest(text.removesuffix("\n")) + "\n"
        return cls(
            parent=message["parent_header"].get("msg_id", ""),
            kind=header["msg_type"],
            text=text,
            stderr=content.get("name") == "stderr",
            date=(header["date"] or "")[:26],
        )


@dataclasses.dataclass
class Asked:
    """A request, and what was heard of it."""

    key: str
    lines: Sequence[str]
    """What it prints."""
    sent: float
    """When it was sent, in seconds."""
    out: list[str] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)
    """What came on stderr."""
    replies: int = 0
    busies: int = 0
    idles: int = 0
    printed_until: str = ""
    """The date of the newest message that was heard."""

    def hear(self, heard: Heard) -> None:
        """Take in a message."""
        self.printed_until = max(self.printed_until, heard.date)
        match heard.kind, heard.text:
            case "stream", text:
                (self.notices if heard.stderr else self.out).append(text)
            case "execute_reply", _:
                self.replies += 1
            case "status", "busy":
                self.busies += 1
            case "status", "idle":
                self.idles += 1
            case _:
                pass

    @property
    def complete(self) -> bool:
        """Whether reply and idle have come."""
        return bool(self.replies and self.idles)

    @property
    def came(self) -> int:
        """How many lines have come."""
        return sum(text.count("\n") for text in self.out)


@dataclasses.dataclass
class Tally:
    """What came of all that was done to one client in one moment."""

    hits: int = 0
    """How often it was hit in that moment."""
    asked: int = 0
    arrived: int = 0
    """Requests that the kernel executed."""
    twice: int = 0
    """How often too many it executed them."""
    replies: int = 0
    """Requests that arrived and were answered."""
    idles: int = 0
    """Requests that arrived and whose idle status came."""
    lost: int = 0
    """Lines, of requests that arrived."""
    untold: int = 0
    """Lost lines of requests that had no notice on stderr."""
    repeated: int = 0
    """Lines, replies and states."""
    reordered: int = 0
    strange: int = 0
    """Lines that were never printed."""
    notices: int = 0
    """Requests with something on stderr."""
    back: list[float] = dataclasses.field(default_factory=list)
    """Seconds from each hit, or its end, until what happened after it was heard."""
    stuck: bool = False
    """It waited in vain."""
    trouble: list[str] = dataclasses.field(default_factory=list)
    """What went wrong, for whoever looks for the reason."""

    def add(self, asked: Asked, executed: int) -> None:
        """Count one request that the kernel executed so many times."""
        self.asked += 1
        self.arrived += bool(executed)
        self.twice += max(executed - 1, 0)
        self.notices += bool(asked.notices)
        if not executed:
            self.strange += asked.came
            return
        count = count_lines("".join(asked.out), asked.lines)
        self.lost += count.lost
        self.untold += 0 if asked.notices else count.lost
        self.reordered += count.out_of_order
        self.strange += count.strange
        over = (max(n - 1, 0) for n in (asked.replies, asked.busies, asked.idles))
        self.repeated += count.repeated + sum(over)
        self.replies += bool(asked.replies)
        self.idles += bool(asked.idles)
        if count.lost or count.out_of_order or count.strange:
            shown = f"first missing {_missing(asked)}, strange {_strange(asked)}"
            self.trouble.append(f"{asked.key}: {count}, {shown}")
        elif not asked.complete:
            self.trouble.append(f"{asked.key}: {asked.replies} replies, {asked.idles} idles")

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together; a hit on one is a hit."""
        total = cls()
        for tally in tallies:
            for field in dataclasses.fields(cls):
                name = field.name
                setattr(total, name, getattr(total, name) + getattr(tally, name))
        return total


def _missing(asked: Asked) -> list[str]:
    came = set("".join(asked.out).splitlines())
    return [line for line in asked.lines if line not in came][:3]


def _strange(asked: Asked) -> list[str]:
    known = set(asked.lines)
    return [line[:200] for line in "".join(asked.out).splitlines() if line not in known][:3]


class Requirement(NamedTuple):
    """What is promised of one client when one component fails."""

    complete: bool = True
    """No line is lost; reply and idle come of whatever arrived. Else the client is told."""
    once: bool = False
    """Nothing comes twice."""
    arrives: bool = False
    """Every request arrives."""
    ordered: bool = True
    """What comes late comes in order."""

    def broken_by(self, tally: Tally, kills: int) -> list[str]:
        """Name what a tally of at least so many kills does not keep of it."""
        found = [
            *(("stuck",) if tally.stuck else ()),
            *((f"{tally.hits} kills of {kills}",) if tally.hits < kills else ()),
            *_nonzero(tally, "strange", "twice"),
            *(_nonzero(tally, "reordered") if self.ordered else ()),
        ]
        if self.complete:
            found += _nonzero(tally, "lost")
            if tally.replies < tally.arrived:
                found.append(f"{tally.arrived - tally.replies} replies missing")
            if tally.idles < tally.arrived:
                found.append(f"{tally.arrived - tally.idles} idles missing")
        else:
            found += _nonzero(tally, "untold")
        if self.once:
            found += _nonzero(tally, "repeated")
        if self.arrives and tally.arrived < tally.asked:
            found.append(f"{tally.asked - tally.arrived} requests did not arrive")
        return found


def _nonzero(tally: Tally, *names: str) -> list[str]:
    return [f"{getattr(tally, name)} {name}" for name in names if getattr(tally, name)]
