"""A kernel's life: launched, heard, watched, restarted, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from relay import limits
from relay.bridge.control import Failure, Phase
from relay.bridge.zmq_codec import Signer
from relay.config import KernelSettings
from relay.errors import KernelError, StartFailed
from relay.holder.backends.kernel_process import KernelProcess
from relay.holder.backends.sockets import Endpoints, KernelSockets
from relay.holder.broker.broker import Broker
from relay.kernel_folders import KernelRecord, KernelState

log = structlog.get_logger(__name__)

_POLL: Final = 0.2
"""Seconds between two looks at the kernel process."""
_START_POLL: Final = 0.02
"""Seconds between two looks at a kernel that has not answered yet."""
_NUDGE: Final = 0.1
"""Seconds between two requests to a kernel that answers but is not heard on iopub."""


class _EndedEarly(StartFailed):
    """The process ended before it was heard."""


class Lifecycle:
    """Brings one kernel up, keeps it up and ends it.

    One change at a time: starting, restarting and stopping exclude each other; an interrupt
    waits for nobody. ``on_change`` is called when the phase changes, ``on_note`` when there is
    something to note for whoever finds the folder: a new kernel process, another `state`.
    """

    def __init__(
        self,
        process: KernelProcess,
        broker: Broker,
        settings: KernelSettings,
        *,
        identity: str,
        on_change: Callable[[], None],
        on_note: Callable[[], None],
    ) -> None:
        self.phase = Phase.STARTING
        self.state: KernelState = "starting"
        self.failure: Failure | None = None
        self._process = process
        self._broker = broker
        self._settings = settings
        self._identity = identity
        self.identities = [identity]
        """The holder's own, and those of dead ones that it stands in for (`KernelRecord`)."""
        self._on_change = on_change
        self._on_note = on_note
        self._lock = asyncio.Lock()
        self._ended = asyncio.Event()
        self._restarts = 0
        self._up_since = 0.0

    async def adopt(self, record: KernelRecord, notice: str) -> None:
        """Take over the kernel that an earlier holder left; `run` then goes on with it.

        Whether it lives is found out there. Raises what its provisioner raises.
        """
        endpoints = await self._process.adopt(record)
        self.identities = [self._identity, *record.identities]
        sockets = self._connect(endpoints)
        signer = Signer(self._process.key, self._process.signature_scheme)
        self._broker.adopt(sockets, signer, notice)
        if record.state == "dead":
            self._broker.close()
            self._broker.activity.enter("dead")
        self._up_since = asyncio.get_running_loop().time()
        self._note(record.state)
        self._enter(Phase.READY)
        log.info("kernel_adopted", kernel_pid=self._process.pid, transport=self._process.transport)

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
        if await self._process.exit_code() is not None:
            msg = "The kernel is not running, so it cannot be interrupted."
            raise KernelError(msg)
        await self._process.interrupt()

    async def restart(self) -> None:
        """End the kernel process and launch a new one. Raises `KernelError`."""
        async with self._lock:
            self._refuse_when_ended()
            self._restarts = 0
            self._note("ready")
            self._broker.activity.enter("restarting")
            await self._process.stop(now=False, restart=True)
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
            await self._process.stop(now=False)
            self._broker.close()
            self._broker.announce("dead")
            self._ended.set()
            self._enter(Phase.GONE)

    def _refuse_when_ended(self) -> None:
        if self._ended.is_set():
            msg = "The kernel has ended."
            raise KernelError(msg)

    def made_up(self) -> None:
        """Nothing that earlier holders asked for is missing any more."""
        self.identities = [self._identity]
        self._on_note()

    def _connect(self, endpoints: Endpoints) -> KernelSockets:
        own, *inherited = (identity.encode() for identity in self.identities)
        return KernelSockets(endpoints, own, self._broker.on_multipart, inherited)

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
        except _EndedEarly:
            if self._process.transport == "tcp":
                raise
            # Some kernels' ZMQ cannot do ipc; they end when they try to bind.
            log.info("retry_over_tcp")
            await self._process.stop(now=True)
            self._broker.close()
            self._process.use_tcp()
            await self._launch()

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        self._up_since = loop.time()
        endpoints = await self._process.launch()
        self._on_note()
        self.identities = [self._identity]
        sockets = self._connect(endpoints)
        self._broker.open(sockets, Signer(self._process.key, self._process.signature_scheme))
        await self._until_heard(sockets, loop.time() + self._settings.launch_timeout)
        self._up_since = loop.time()
        process = self._process
        log.info("kernel_started", kernel_pid=process.pid, transport=process.transport)

    async def _until_heard(self, sockets: KernelSockets, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        # Waits in ZMQ until the kernel listens. Asked again only after an answer: requests that
        # pile up before a slow kernel would all be answered later.
        self._broker.ask()
        while not (self._broker.heard.is_set() and self._broker.answered.is_set()):
            code = await self._process.exit_code()
            if code is not None:
                raise _EndedEarly(self._ended_early(code))
            if loop.time() > deadline:
                limits.record("kernels.launch_timeout")
                raise StartFailed(self._not_heard(sockets))
            sockets.beat()
            if self._broker.answered.is_set():
                self._broker.ask()
            await asyncio.sleep(_NUDGE if self._broker.answered.is_set() else _START_POLL)

    def _ended_early(self, code: int) -> str:
        return f"The kernel ended with exit code {code} before it answered.{self._last_words()}"

    def _not_heard(self, sockets: KernelSockets) -> str:
        missing = "its kernel_info reply" if sockets.heard_beat else "its heartbeat"
        if self._broker.answered.is_set():
            missing = "anything on iopub"
        return (
            f"The kernel did not come up within {self._settings.launch_timeout:g} s "
            f"(kernels.launch_timeout): waited for {missing}.{self._last_words()}"
        )

    def _last_words(self) -> str:
        tail = self._process.log_tail().strip()
        return f" Its last output: {tail}" if tail else ""

    async def _give_up(self, error: StartFailed) -> None:
        log.warning("start_failed", problem=error.message)
        self._note("ending")
        self.failure = Failure(error.message, error.reason, error.http_status)
        await self._process.stop(now=True)
        self._broker.close()
        self._broker.activity.enter("dead")
        self._ended.set()
        self._enter(Phase.FAILED)

    # Watching.

    async def _look(self) -> None:
        async with self._lock:
            if self._ended.is_set() or self._broker.activity.state == "dead":
                return
            code = await self._process.exit_code()
            if code is not None:
                log.warning("kernel_died", exit_code=code)
                await self._autorestart()

    async def _autorestart(self) -> None:
        self._broker.close()
        uptime = asyncio.get_running_loop().time() - self._up_since
        self._restarts = 1 if uptime > self._settings.restart_window else self._restarts + 1
        await self._process.collect()
        if self._restarts > self._settings.restart_limit:
            log.error("kernel_dead", restarts=self._restarts - 1, setting="kernels.restart_limit")
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
        await self._process.stop(now=True, restart=True)
        self._broker.close()
