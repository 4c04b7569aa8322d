"""A kernel's lifecycle: launched, watched, restarted, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from relay import limits
from relay.bridge.control import Failure, Phase
from relay.config import KernelSettings
from relay.errors import KernelError, StartFailed
from relay.holder.backends.base import KernelBackend
from relay.holder.broker.broker import Broker
from relay.holder.startup import EndedEarly, until_answered
from relay.kernel_folders import KernelRecord, KernelState

log = structlog.get_logger(__name__)

_POLL: Final = 0.2
"""Seconds between two looks at the kernel process."""


class Lifecycle:
    """Brings one kernel up, keeps it up and ends it.

    One change at a time: starting, restarting and stopping exclude each other; an interrupt
    waits for nobody. ``on_change`` is called when the phase changes, ``on_note`` when there is
    something to note in the folder: a new kernel process, another `state`.
    """

    def __init__(
        self,
        backend: KernelBackend,
        broker: Broker,
        settings: KernelSettings,
        *,
        on_change: Callable[[], None],
        on_note: Callable[[], None],
    ) -> None:
        self.phase = Phase.STARTING
        self.state: KernelState = "starting"
        self.failure: Failure | None = None
        self._backend = backend
        self._broker = broker
        self._settings = settings
        self._on_change = on_change
        self._on_note = on_note
        self._lock = asyncio.Lock()
        self._ended = asyncio.Event()
        self._restarts = 0
        self._up_since = 0.0

    async def adopt(self, record: KernelRecord, notice: str) -> None:
        """Take over the kernel that an earlier holder left; `run` then goes on with it.

        Whether it lives is found out there. Raises what its backend raises.
        """
        channel = await self._backend.adopt(record, self._broker.on_message)
        self._broker.adopt(channel, notice)
        if record.state == "dead":
            self._broker.close()
            self._broker.activity.enter("dead")
        self._up_since = asyncio.get_running_loop().time()
        self._note(record.state)
        self._enter(Phase.READY)
        log.info("kernel_adopted", **self._backend.log_fields)

    async def run(self) -> None:
        """Start the kernel, unless it was adopted, and stay until it has ended for good."""
        if self.phase is not Phase.READY:
            try:
                async with self._lock:
                    await self._start_first()
            except StartFailed as error:
                await self._give_up(error)
                return
            self._note("ready")
            self._enter(Phase.READY)
        while not self._ended.is_set():
            await self._look()
            await self._pause(_POLL)

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs. Raises `KernelError`."""
        if await self._backend.poll() is not None:
            msg = "The kernel is not running, so it cannot be interrupted."
            raise KernelError(msg)
        await self._backend.interrupt()

    async def restart(self) -> None:
        """End the kernel process and launch a new one. Raises `KernelError`."""
        async with self._lock:
            self._refuse_when_ended()
            self._restarts = 0
            self._note("ready")
            self._broker.activity.enter("restarting")
            await self._backend.end(now=False, relaunch=True)
            self._broker.close()
            try:
                await self._launch()
            except StartFailed:
                await self._end_failed_launch()
                self._note("dead")
                self._broker.announce("dead")
                raise

    async def stop(self) -> None:
        """End the kernel for good. Nothing happens where it has ended already."""
        async with self._lock:
            if self._ended.is_set():
                return
            # Nobody is to adopt what is being ended.
            self._note("ending")
            self._broker.activity.enter("terminating")
            await self._backend.end(now=False)
            self._broker.close()
            self._broker.announce("dead")
            self._ended.set()
            self._enter(Phase.GONE)

    def _refuse_when_ended(self) -> None:
        if self._ended.is_set():
            msg = "The kernel has ended."
            raise KernelError(msg)

    def recovered(self) -> None:
        """Nothing that earlier holders asked for is missing any more."""
        self._backend.forget_predecessors()
        self._on_note()

    def _note(self, state: KernelState) -> None:
        self.state = state
        self._on_note()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._on_change()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    # Starting.

    async def _start_first(self) -> None:
        try:
            await self._launch()
        except EndedEarly:
            # Some kernels' ZeroMQ has no ipc; they end when they try to bind.
            if not await self._backend.fall_back():
                raise
            log.info("transport_fallback")
            self._broker.close()
            await self._launch()

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        self._up_since = loop.time()
        channel = await self._backend.launch(self._broker.on_message)
        self._on_note()
        self._broker.open(channel)
        await until_answered(self._backend, channel, self._broker, self._settings.launch_timeout)
        self._up_since = loop.time()
        log.info("kernel_started", **self._backend.log_fields)

    async def _give_up(self, error: StartFailed) -> None:
        log.warning("start_failed", problem=error.message)
        self._note("ending")
        self.failure = Failure(error.message, error.reason, error.http_status)
        await self._backend.end(now=True)
        self._broker.close()
        self._broker.activity.enter("dead")
        self._ended.set()
        self._enter(Phase.FAILED)

    # Watching.

    async def _look(self) -> None:
        async with self._lock:
            if self._ended.is_set() or self._broker.activity.state == "dead":
                return
            code = await self._backend.poll()
            if code is not None:
                log.warning("kernel_died", exit_code=code)
                await self._autorestart()

    async def _autorestart(self) -> None:
        self._broker.close()
        uptime = asyncio.get_running_loop().time() - self._up_since
        self._restarts = 1 if uptime > self._settings.restart_window else self._restarts + 1
        await self._backend.clean_up()
        if self._restarts > self._settings.restart_limit:
            log.error(
                "kernel_restart_limit_reached",
                restarts=self._restarts - 1,
                setting="kernels.restart_limit",
            )
            limits.record("kernels.restart_limit")
            self._note("dead")
            self._broker.announce("dead")
            return
        self._broker.announce("restarting")
        try:
            await self._launch()
        except StartFailed as error:
            # The next look finds no process and counts one restart more.
            log.warning("restart_failed", problem=error.message)
            await self._end_failed_launch()

    async def _end_failed_launch(self) -> None:
        await self._backend.end(now=True, relaunch=True)
        self._broker.close()
