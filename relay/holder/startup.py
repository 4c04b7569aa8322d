"""When a kernel that was launched has started: it has answered, and been heard on iopub."""

from __future__ import annotations

import asyncio
from typing import Final

from relay import limits
from relay.errors import StartFailed
from relay.holder.backends.base import KernelBackend, KernelChannel
from relay.holder.broker.broker import Broker

_POLL: Final = 0.02
"""Seconds between two looks at a kernel that has not answered yet."""
_NUDGE: Final = 0.1
"""Seconds between two requests to a kernel that answers but is not heard on iopub."""


class EndedEarly(StartFailed):
    """The kernel ended before it answered."""


async def until_answered(
    backend: KernelBackend, channel: KernelChannel, broker: Broker, timeout: float
) -> None:
    """Wait until the kernel has answered, and has been heard on iopub.

    Raises `EndedEarly`, and `StartFailed` after ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    heard, answered = broker.heard, broker.probes.answered
    # Waits in the channel until the kernel listens. Asked again only after an answer: requests
    # that pile up before a slow kernel would all be answered later.
    broker.ask()
    while not (heard.is_set() and answered.is_set()):
        code = await backend.poll()
        if code is not None:
            ended = f"The kernel ended with exit code {code} before it answered."
            raise EndedEarly(ended + _last_words(backend))
        if loop.time() > deadline:
            limits.record("kernels.launch_timeout")
            missing = _missing(channel, answered=answered.is_set())
            raise StartFailed(
                f"The kernel did not come up within {timeout:g} s (kernels.launch_timeout): "
                f"waited for {missing}.{_last_words(backend)}"
            )
        channel.beat()
        if answered.is_set():
            broker.ask()
        await asyncio.sleep(_NUDGE if answered.is_set() else _POLL)


def _missing(channel: KernelChannel, *, answered: bool) -> str:
    if answered:
        return "anything on iopub"
    return "its kernel_info reply" if channel.is_alive else "its heartbeat"


def _last_words(backend: KernelBackend) -> str:
    tail = backend.log_tail().strip()
    return f" Its last output: {tail}" if tail else ""
