"""After a kernel was adopted: what its clients wait for and will not get is made up for.

What the kernel sent while nobody read is gone: output, which a notice speaks of; replies and idle
statuses, for which clients would wait for ever. So each of the kernel's lanes is asked something.
A lane is worked off in order: when that is answered, whatever was asked there before and is still
unfinished will not be finished by the kernel any more.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from relay.holder.broker.broker import Broker
from relay.holder.sessions.requests import MAIN, KernelRequest, RequestQueue, RequestStore

log = structlog.get_logger(__name__)

_IOPUB: Final = 0.5
"""Seconds that a probe's idle status may come after its reply, over another socket."""
_PROBES: Final = 10
"""Probes after which a kernel is taken for one that tells no idle of them."""
NOTICE: Final = (
    "[relay] The process that reads this kernel's output died and was replaced: "
    "output in between may be missing.\n"
)
_LOST: Final = (
    "The kernel's reply was lost when the process that reads them died. "
    "What was asked for has probably been done, or will be."
)


async def make_up(broker: Broker, requests: RequestStore) -> None:
    """Wait until each lane has been worked off, for as long as that takes, and make up for it."""
    lanes: dict[RequestQueue, list[KernelRequest]] = {MAIN: []}
    for asked in requests:
        lanes.setdefault(asked.lane, []).append(asked)
    async with asyncio.TaskGroup() as tasks:
        for lane, before in lanes.items():
            tasks.create_task(_settle(broker, lane, before), name=f"settle {lane[0].wire}")
    broker.drop_inherited()


async def _settle(broker: Broker, lane: RequestQueue, before: list[KernelRequest]) -> None:
    # A kernel that reads only when it has nothing to do takes a message from each connection in
    # turn: a probe may overtake all but one of what waits in the dead holder's.
    for _ in range(len(before) + 1):
        if not await _answers(broker, lane):
            return
    lost = [asked for asked in before if not asked.finished]
    for asked in lost:
        log.warning(
            "replies_synthesized", msg_type=asked.msg_type, reply=asked.answered, idle=asked.idle
        )
        broker.finish(asked, "RelayReplyLost", _LOST)
    if lane == MAIN:
        broker.learnt_idle(before)


async def _answers(broker: Broker, lane: RequestQueue) -> bool:
    """Whether the kernel has answered in this lane; false where it ended first."""
    for _ in range(_PROBES):
        probe = broker.ask(*lane)
        await probe.answered.wait()
        if probe.lost:
            return False
        try:
            # Then iopub has been read up to there as well.
            await asyncio.wait_for(probe.idle.wait(), _IOPUB)
        except TimeoutError:
            # The subscription came too late for it.
            continue
        return not probe.lost
    return True
