"""The moments in which a client can be hit, each with what it does before and after the blow."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from tests.chaos.desk import PATIENCE, Desk, Stuck, numbered, until
from tests.chaos.tally import Asked, Tally, digest

LINES: Final = 2000
"""Lines of the cell that prints."""
_NEAR: Final = 0.85
"""The part of a cell's lines after which it is not hit for certain."""
_MIB: Final = 1024 * 1024
STARTING: Final = "starting"
LARGE: Final = 30 * _MIB
"""Characters of the large output, for a client that reads fast enough to have time for it."""
LESS: Final = 9 * _MIB
"""The same for others; a Jupyter Server in gateway mode takes no more than 10 MiB."""


class Moment(Protocol):
    """What a client does around a blow."""

    within: float
    """Seconds after `ready` within which a blow falls into the moment."""

    @property
    def lasts(self) -> bool:
        """Whether it is in the moment still; asked at the blow."""

    async def ready(self) -> None:
        """Get into the moment, or near to it."""

    async def begin(self) -> None:
        """Get into the moment where it is a short one; all the others are ready."""

    async def aim(self) -> None:
        """Do what has to happen within milliseconds before the blow."""

    async def recover(self, struck: str) -> None:
        """Wait until something is heard that happened after ``struck``, an ISO 8601 date in UTC."""

    async def finish(self) -> None:
        """Let what was begun come to its end."""


class Post:
    """A desk in a moment, and its tally."""

    def __init__(self, client: str, name: str, desk: Desk, moment: Moment) -> None:
        self.client = client
        self.moment_name = name
        self.desk = desk
        self.moment = moment
        self.tally = Tally()
        self.stuck = False
        """Nothing more is to be expected of it."""

    async def ready(self) -> None:
        """Get into the moment."""
        await self._bounded(self.moment.ready)

    async def begin(self) -> None:
        """The same, where others must not keep it waiting."""
        await self._bounded(self.moment.begin)

    async def aim(self) -> None:
        """Do what has to happen just before the blow."""
        await self._bounded(self.moment.aim)

    async def recover(self, struck: str) -> float | None:
        """Wait until the client is back: when it heard of something that came after the blow, in
        seconds; None where that was lost."""
        await self._bounded(functools.partial(self.moment.recover, struck))
        return time.monotonic() if self.desk.heard_until > struck else None

    def note(self, back: float | None, since: float) -> None:
        """Count a hit, and how long it took to recover."""
        if not self.stuck:
            self.tally.hits += 1
            if back is not None:
                self.tally.back.append(max(back - since, 0.0))

    async def finish(self) -> None:
        """Count all that was asked."""
        await self._bounded(self.moment.finish)
        self.desk.count(self.tally)

    async def _bounded(self, step: Callable[[], Awaitable[None]]) -> None:
        if self.stuck:
            return
        try:
            async with asyncio.timeout(PATIENCE + 10):
                await step()
        except (Stuck, TimeoutError) as error:
            self.stuck = self.tally.stuck = True
            self.tally.trouble.append(f"{self.desk.name} is stuck: {error!r}")


class _Quiet:
    """Does nothing where a moment needs nothing."""

    within = 0.7

    def __init__(self, desk: Desk, dice: random.Random) -> None:
        self._desk = desk
        self._dice = dice
        self._asked: Asked | None = None

    @property
    def lasts(self) -> bool:
        """Until what was asked is complete."""
        return self._asked is None or not self._asked.complete

    async def ready(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> None:
        """Nothing to begin."""

    async def aim(self) -> None:
        """Nothing to do in the last moment."""

    async def finish(self) -> None:
        """Wait for the last request's end."""
        if self._asked is not None:
            await self._desk.settle(self._asked)
            self._asked = None

    async def _begin(self, ask: Callable[[str], Awaitable[Asked]]) -> Asked:
        """Ask, with `Desk.next_key`, until the kernel is busy with it.

        What a blow did to a connection may show only after it: when the answers that were on their
        way have come, or when the next request is sent. That one is lost, and counted as such.
        """
        asked = await ask(self._desk.next_key)
        while not await self._desk.has_begun(asked):
            asked = await ask(self._desk.next_key)
        return asked


class Speed(NamedTuple):
    """How a cell prints."""

    lines: int = LINES
    burst: int = 10
    pause: float = 0.2
    """Seconds between two bursts: the cell is to last for several blows."""


class Printing(_Quiet):
    """In the middle of a cell that prints many lines."""

    def __init__(self, desk: Desk, dice: random.Random, speed: Speed) -> None:
        super().__init__(desk, dice)
        self._lines, self._burst, self._pause = speed

    async def ready(self) -> None:
        """Have a cell print, with enough to come."""
        if self._asked is not None and (
            self._asked.complete or self._asked.came > self._lines * _NEAR
        ):
            await self.finish()
        if self._asked is None:
            self._asked = await self._begin(self._ask)
        asked = self._asked
        await until(f"lines of {asked.key}", lambda: asked.came)

    async def _ask(self, name: str) -> Asked:
        code = (
            "import sys, time\n"
            f"for number in range({self._lines}):\n"
            # In one piece: print's may be sent in two messages, and the second alone again.
            f"    sys.stdout.write(f'{name} {{number}}\\n'); sys.stdout.flush()\n"
            f"    if number % {self._burst} == {self._burst - 1}: time.sleep({self._pause})"
        )
        return await self._desk.ask(code, list(numbered(name, self._lines)))

    async def recover(self, struck: str) -> None:
        """Wait for a line that was printed after the blow."""
        asked = self._asked
        assert asked is not None
        await self._desk.settle(asked, lambda: asked.printed_until > struck)


class Idle(_Quiet):
    """Between two cells: the next is sent just after the blow."""

    async def recover(self, struck: str) -> None:
        """Ask for something."""
        name = self._desk.next_key
        await asyncio.sleep(self._dice.uniform(0, 0.2))
        self._asked = await self._desk.ask(f"print({name!r})", [name])
        await self.finish()


class JustAsked(_Quiet):
    """A request was sent a few milliseconds before the blow."""

    async def aim(self) -> None:
        """Send it."""
        name = self._desk.next_key
        self._asked = await self._desk.ask(f"print({name!r})", [name])

    async def recover(self, struck: str) -> None:
        """Wait for its end."""
        await self.finish()


class Silent(_Quiet):
    """The kernel is busy and says nothing until after the blow."""

    def __init__(self, desk: Desk, dice: random.Random, gate: Path) -> None:
        super().__init__(desk, dice)
        self._gate = gate

    async def ready(self) -> None:
        """Have it wait."""
        self._gate.unlink(missing_ok=True)
        self._asked = await self._begin(self._ask)

    async def _ask(self, name: str) -> Asked:
        code = (
            "import pathlib, time\n"
            f"while not pathlib.Path({str(self._gate)!r}).exists(): time.sleep(0.05)\n"
            f"print({name!r})"
        )
        return await self._desk.ask(code, [name])

    async def recover(self, struck: str) -> None:
        """Have it go on."""
        self._gate.touch()
        await self.finish()


class Large(_Quiet):
    """In the middle of a message of 30 MB."""

    within = 0.2

    def __init__(self, desk: Desk, dice: random.Random, size: int) -> None:
        super().__init__(desk, dice)
        self._code = f"print('0123456789abcdef' * ({size} // 16))"
        self._lines = [_large(size)]

    async def begin(self) -> None:
        """Have it made, and perhaps begun."""
        self._asked = await self._begin(lambda _: self._desk.ask(self._code, self._lines))

    async def recover(self, struck: str) -> None:
        """Wait for the rest."""
        await self.finish()


@functools.cache
def _large(size: int) -> str:
    return digest("0123456789abcdef" * (size // 16))


def now() -> str:
    """The date, as kernels write it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


MOMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "printing": "mid-stream",
        "idle": "idle",
        "asked": "a request just sent",
        "large": "in a large message",
        "silent": "busy and silent",
        STARTING: "while a kernel starts",
    }
)


def moment(
    name: str, desk: Desk, dice: random.Random, gate: Path, speed: Speed, large: int
) -> Moment:
    """The moment of that name; ``large`` is a large message's size, in characters."""
    match name:
        case "idle":
            return Idle(desk, dice)
        case "asked":
            return JustAsked(desk, dice)
        case "silent":
            return Silent(desk, dice, gate)
        case "large":
            return Large(desk, dice, large)
        case _:
            return Printing(desk, dice, speed)
