"""The holders of this node: found in their folders, started, spoken to.

The folders are the registry; what is kept here is read from them and from the holders' sockets,
and can be read again by the next agent. Agents that share a state folder serve the same kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from relay import limits
from relay.agent.line import Line
from relay.agent.tally import Tally
from relay.bridge.records import Phase
from relay.config import AgentConfig, CullSettings
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, Conflict, NotFound, RelayError, StartFailed, TooMany
from relay.model import Principal
from relay.registry import (
    Place,
    kernels_folder,
    places,
    private_folder,
    process_started,
    remove,
    runtime_folder,
    socket_name,
    sweep,
    write_atomic,
)
from relay.routing.routes import is_kernel_id

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CONNECT: Final = 15.0
"""Seconds a holder has from its start until it serves its socket."""
_ANSWER: Final = 5.0
"""Seconds a list waits for a holder that was never heard."""
_RETRY: Final = 0.02
_TRIES: Final = 3
_ALLOCATOR: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "524288",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
}
_TAIL: Final = 250
"""Characters of a failed holder's log that go into the agent's."""
_MARGIN: Final = 20.0
"""Seconds beyond twice the launch timeout (ipc, then TCP) after which a start has failed."""


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel somebody wants; ``environment`` is the kernel's whole environment."""

    kernel_id: str
    name: str
    owner: Principal
    environment: dict[str, str]
    parameters: dict[str, str]
    working_folder: str | None
    cull: CullSettings
    launch_timeout: float
    request_id: str


class Holders:
    """The kernels of one cluster on this node.

    ``tasks`` owns the lines to the holders.
    """

    def __init__(self, config: AgentConfig, max_record: int, tasks: asyncio.TaskGroup) -> None:
        self._config = config
        self._max_record = max_record
        self._tasks = tasks
        self._state_dir = Path(config.state_dir)
        self._runtime = runtime_folder(self._state_dir, config.runtime_dir)
        self._lines: dict[str, Line] = {}
        self._gone: set[str] = set()
        """Ended, though their folders may be there for another moment."""
        self._opening: dict[str, asyncio.Task[Line | None]] = {}
        self.tally = Tally()
        private_folder(kernels_folder(self._state_dir, config.cluster))
        sweep(self._state_dir, config.cluster)

    @property
    def ready(self) -> list[Line]:
        """The kernels that run, as far as is known."""
        return [line for line in self._lines.values() if line.status.phase is Phase.READY]

    async def find(self) -> None:
        """Find the kernels that run already, and end what holders that died left behind."""
        try:
            lines = await self.all()
        except AgentUnavailable as error:
            log.warning("holder_silent", problem=error.message)
        else:
            log.info("kernels_found", count=len(lines))

    async def all(self) -> list[Line]:
        """Every kernel that runs. Raises `AgentUnavailable` rather than leave one out."""
        found = places(self._state_dir, self._config.cluster)
        self._gone &= {place.kernel_id for place in found}
        unknown = [place for place in found if not self._is_known(place)]
        await self._within_answer(asyncio.gather(*(self._open(place) for place in unknown)))
        return self.ready

    async def get(self, kernel_id: str) -> Line:
        """One kernel. Raises `NotFound`."""
        if not is_kernel_id(kernel_id):
            # An id becomes a path.
            raise _no_such_kernel(kernel_id)
        line = self._lines.get(kernel_id)
        place = self._place(kernel_id)
        if line is None and kernel_id not in self._gone and place.exists():
            line = await self._within_answer(self._open(place))
        if line is None or line.status.phase is not Phase.READY:
            raise _no_such_kernel(kernel_id)
        return line

    async def start(self, request: StartRequest) -> Line:
        """Start a kernel, or find the one that an earlier try with the same id started.

        Raises `StartFailed`, `Conflict` for somebody else's kernel and `TooMany`.
        """
        self.tally.starts += 1
        try:
            return await self._start(request)
        except StartFailed:
            self.tally.start_failures += 1
            raise

    async def _start(self, request: StartRequest) -> Line:
        line = self._lines.get(request.kernel_id)
        if line is None:
            self._check_room(request.kernel_id)
            line = await self._open(self._place(request.kernel_id), request)
        if line is None:
            msg = "The kernel ended while it started."
            raise StartFailed(msg)
        if line.status.owner != str(request.owner):
            # Somebody else's kernel: say no more than that the id is taken.
            msg = "This kernel id is taken."
            raise Conflict(msg)
        try:
            await line.settled(2 * request.launch_timeout + _MARGIN)
        except TimeoutError:
            msg = "The kernel's holder does not answer."
            raise StartFailed(msg) from None
        if line.status.phase is Phase.FAILED and line.status.failure is not None:
            raise StartFailed(line.status.failure.message)
        if line.status.phase is not Phase.READY:
            msg = "The kernel ended while it started."
            raise StartFailed(msg)
        return line

    def _check_room(self, kernel_id: str) -> None:
        limit = self._config.kernels.max_kernels
        others = {place.kernel_id for place in places(self._state_dir, self._config.cluster)}
        if limit and len((others - self._gone | self._opening.keys()) - {kernel_id}) >= limit:
            log.warning("too_many_kernels", limit=limit, setting="kernels.max_kernels")
            limits.hit("kernels.max_kernels")
            raise TooMany(f"This cluster runs {limit} kernels already (kernels.max_kernels).")

    async def stop(self, kernel_id: str, request_id: str) -> None:
        """End a kernel. Raises `NotFound`."""
        line = await self.get(kernel_id)
        await line.call("shutdown", request_id, self._config.kernels.shutdown_timeout + _MARGIN)
        self._forget(line)

    def close(self) -> None:
        """Hang up on all holders; they and their kernels live on."""
        for task in list(self._opening.values()):
            task.cancel()
        for line in self._lines.values():
            line.close()

    def _place(self, kernel_id: str) -> Place:
        return Place(kernels_folder(self._state_dir, self._config.cluster) / kernel_id)

    def _is_known(self, place: Place) -> bool:
        return place.kernel_id in self._lines or place.kernel_id in self._gone

    async def _within_answer(self, waited: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(waited, _ANSWER)
        except TimeoutError:
            msg = "A kernel's holder does not answer."
            raise AgentUnavailable(msg, retry_after=1) from None

    async def _open(self, place: Place, request: StartRequest | None = None) -> Line | None:
        """The line to a kernel's holder; all who ask at the same time get the same one."""
        task = self._opening.get(place.kernel_id)
        if task is None:
            coroutine = self._open_once(place, request)
            task = self._tasks.create_task(coroutine, name=f"open {place.kernel_id}")
            self._opening[place.kernel_id] = task
            task.add_done_callback(lambda _: self._opening.pop(place.kernel_id, None))
        # Whoever stops waiting must not stop the others' start.
        return await asyncio.shield(task)

    async def _open_once(self, place: Place, request: StartRequest | None) -> Line | None:
        if request is None:
            self._clean_up(place)
            line = await self._connect(place)
            if line is None:
                # It ended in between.
                self._clean_up(place)
            return line
        self._gone.discard(place.kernel_id)
        for _ in range(_TRIES):
            # Another agent may take a folder without a holder for a left-over in between.
            with contextlib.suppress(FileNotFoundError):
                private_folder(place.folder)
                self._spawn_unless_taken(place, request)
            line = await self._connect(place)
            if line is not None:
                return line
        return None

    def _clean_up(self, place: Place) -> None:
        """Remove a folder that no holder holds, and what its holder left running."""
        with contextlib.suppress(FileNotFoundError):
            lock = place.try_lock()
            if lock is not None:
                _bury(place)
                os.close(lock)

    def _spawn_unless_taken(self, place: Place, request: StartRequest) -> None:
        lock = place.try_lock()
        if lock is None:
            return
        try:
            if place.read_record() is None:
                # The holder inherits the lock: there is no moment in which nobody has it.
                self._spawn(place, request, lock)
            else:
                _bury(place)
        finally:
            os.close(lock)

    async def _connect(self, place: Place) -> Line | None:
        deadline = time.monotonic() + _CONNECT
        while time.monotonic() < deadline:
            try:
                line = await Line.open(place)
            except (OSError, EOFError):
                if not place.exists():
                    return None
                if _is_free(place):
                    log.warning("holder_failed", kernel_id=place.kernel_id, said=_log_tail(place))
                    return None
                await asyncio.sleep(_RETRY)
                continue
            self._lines[place.kernel_id] = line
            self.tally.meet(line)
            self._tasks.create_task(self._follow(line), name=f"line {place.kernel_id}")
            return line
        msg = "A kernel's holder does not answer."
        raise AgentUnavailable(msg, retry_after=1)

    async def _follow(self, line: Line) -> None:
        await line.run()
        hung_up_by_us = line.closed
        self._forget(line)
        if line.status.phase in {Phase.READY, Phase.STARTING} and not hung_up_by_us:
            # Hung up without a word: looking again buries what the holder left, if it died.
            log.warning("holder_lost", kernel_id=line.place.kernel_id)
            self.tally.holder_deaths += 1
            self._gone.discard(line.place.kernel_id)
            await self._open(line.place)

    def _forget(self, line: Line) -> None:
        self._gone.add(line.place.kernel_id)
        if self._lines.get(line.place.kernel_id) is line:
            self.tally.part(line)
            del self._lines[line.place.kernel_id]
        line.close()

    def _spawn(self, place: Place, request: StartRequest, lock: int) -> None:
        config = HolderConfig(
            name=request.name,
            owner=str(request.owner),
            request_id=request.request_id,
            created=time.time(),
            socket=str(self._runtime / f"{socket_name()}.sock"),
            environment=request.environment,
            parameters=request.parameters,
            working_folder=request.working_folder,
            culling=request.cull,
            max_record=self._max_record,
            kernels=msgspec.structs.replace(
                self._config.kernels, launch_timeout=request.launch_timeout
            ),
            journal=self._config.journal,
            sessions=self._config.sessions,
            log=self._config.log,
        )
        write_atomic(place.request, msgspec.json.encode(config))
        # -P: the folder we happen to be in is no place to import from.
        command = [sys.executable, "-P", "-m", "relay.holder", "--folder", str(place.folder)]
        descriptor = os.open(place.holder_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [*command, "--lock", str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=(lock,),
                start_new_session=True,
                env=_holder_environment(),
            )
        finally:
            os.close(descriptor)
        log.info("holder_started", kernel_id=place.kernel_id, holder_pid=process.pid)
        _reap(process)


def _holder_environment() -> dict[str, str]:
    """What a holder, which is no kernel, gets: ours, and an allocator that gives back.

    Else glibc, having freed a few large messages, keeps the next ones' memory for itself
    (``mallopt(3)``, M_MMAP_THRESHOLD).
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return own | _ALLOCATOR


def _no_such_kernel(kernel_id: str) -> NotFound:
    # Jupyter Server's own words.
    return NotFound(f"Kernel does not exist: {kernel_id[:64]}")


def _is_free(place: Place) -> bool:
    """Whether nobody holds a kernel's folder: its holder ended before it served."""
    try:
        lock = place.try_lock()
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    os.close(lock)
    return True


def _bury(place: Place) -> None:
    """End what a holder that died left running. Call it with the folder's lock taken."""
    record = place.read_record()
    if record is not None and record.kernel_pid is not None:
        alive = process_started(record.kernel_pid) == record.kernel_started
        log.warning("holder_died", kernel_id=place.kernel_id, kernel_alive=alive)
        if alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.kernel_pid, signal.SIGKILL)
    address = place.read_address()
    if address is not None:
        for socket in address.socket.parent.glob(f"{address.socket.stem}*"):
            socket.unlink(missing_ok=True)
    remove(place)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Collect the holder's exit status when it ends, so that it leaves no zombie."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.wait()

    loop.add_reader(descriptor, ended)


async def end_kernels(state_dir: Path, timeout: float) -> int:
    """End every kernel of every cluster in a state folder, agents or not; returns how many.

    ``timeout`` in seconds is what one kernel may take; one that takes longer is killed.
    """
    found = [
        place
        for folder in state_dir.glob("*/kernels")
        for place in places(state_dir, folder.parent.name)
    ]
    ended = await asyncio.gather(*(_end(place, timeout) for place in found))
    return sum(ended)


async def _end(place: Place, timeout: float) -> bool:
    if not _is_free(place):
        try:
            async with asyncio.timeout(timeout):
                line = await Line.open(place)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(line.run(), name="line")
                    await line.call("shutdown", "", timeout)
        except* (OSError, EOFError, RelayError, TimeoutError) as group:
            problem = repr(group.exceptions[0])
            log.warning("holder_unwilling", kernel_id=place.kernel_id, problem=problem)
            _kill_holder(place)
        else:
            return True
    await asyncio.sleep(_RETRY)
    with contextlib.suppress(FileNotFoundError):
        lock = place.try_lock()
        if lock is not None:
            ran = place.exists()
            _bury(place)
            os.close(lock)
            return ran
    return False


def _log_tail(place: Place) -> str:
    """The end of what a holder wrote before it ended."""
    with contextlib.suppress(OSError):
        return place.holder_log.read_text(errors="replace")[-_TAIL:]
    return ""


def _kill_holder(place: Place) -> None:
    record = place.read_record()
    if record is not None and process_started(record.holder_pid) == record.holder_started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(record.holder_pid, signal.SIGKILL)
