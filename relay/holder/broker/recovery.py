"""Recovery after a kernel was adopted: what its clients wait for and will not get is synthesized.

What the kernel sent while nobody read is gone: output, which a notice speaks of; replies and idle
statuses, for which clients would wait for ever. So each of the kernel's request queues is probed.
A kernel works a queue off in order: when the probe is answered, whatever was asked there before and
is still unfinished will not be finished by the kernel any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from relay.bridge.events import KernelRecovered, MessagePublished
from relay.bridge.messages import Channel, parse_header
from relay.bridge.requests import MAIN, KernelRequest, RequestQueue
from relay.holder.broker.activity import NO_PARENT
from relay.holder.broker.broker import Broker
from relay.holder.broker.outbound import Keep

log = structlog.get_logger(__name__)

_IOPUB: Final = 0.5
"""Seconds that a probe's idle status may come after its reply, over another socket."""
_PROBES: Final = 10
"""Probes after which a kernel is taken for one that tells no idle of them."""
NOTICE: Final = (
    "[relay] The process that reads this kernel's output died and was replaced: "
    "output in between may be missing.\n"
)
_LOST: Final = "RelayReplyLost"
_WHY: Final = (
    "The kernel's reply was lost when the process that reads them died. "
    "What was asked for has probably been done, or will be."
)


async def recover(broker: Broker) -> None:
    """Wait until each queue has been worked off, however long that takes; synthesize what lacks."""
    queues: dict[RequestQueue, list[KernelRequest]] = {MAIN: []}
    for request in broker.sessions.unfinished:
        queues.setdefault(request.queue, []).append(request)
    async with asyncio.TaskGroup() as tasks:
        for queue, before in queues.items():
            tasks.create_task(_recover(broker, queue, before), name=f"recover {queue[0].wire}")


async def _recover(broker: Broker, queue: RequestQueue, before: Sequence[KernelRequest]) -> None:
    # A kernel that reads only when it has nothing to do takes a message from each connection in
    # turn: a probe may overtake all but one of what waits in the dead holder's.
    for _ in range(len(before) + 1):
        if not await _answers(broker, queue):
            return
    for request in before:
        if not request.finished and request.msg_type:
            synthesize_replies(broker, request)
    if queue == MAIN:
        _on_recovered_idle(broker, before)


async def _answers(broker: Broker, queue: RequestQueue) -> bool:
    """Whether the kernel has answered in this queue; false where it ended first."""
    for _ in range(_PROBES):
        probe = broker.ask(*queue)
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


def synthesize_replies(broker: Broker, request: KernelRequest) -> None:
    """Give a request's asker the reply, and everybody the idle status, that were lost."""
    log.warning(
        "replies_synthesized",
        msg_type=request.msg_type,
        reply=request.answered,
        idle=request.idle,
    )
    ids = request.msg_id, request.session, request.subshell
    header = bytes(request.header)
    if not request.answered:
        reply = broker.synthetic.error(request.channel, request.msg_type, _LOST, _WHY, header)
        broker.perform(MessagePublished(request.channel, *ids), reply)
    if not request.idle:
        idle = broker.synthetic.status("idle", header)
        broker.perform(MessagePublished(Channel.IOPUB, *ids, idle=True), idle, Keep.ALWAYS)


def _on_recovered_idle(broker: Broker, before: Sequence[KernelRequest]) -> None:
    """The kernel has done all that an earlier holder had sent to its main shell."""
    activity = broker.activity
    running = parse_header(activity.running_cell)
    if any((each.msg_id, each.session) == (running.msg_id, running.session) for each in before):
        activity.running_cell = NO_PARENT
    if activity.running_cell == NO_PARENT:
        broker.announce("idle")
    broker.perform(KernelRecovered())
