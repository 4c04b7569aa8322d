"""Runs `relay up`: ports, processes, readiness, signals and the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from relay.config import AgentConfig, EdgeConfig, UpConfig
from relay.log import get_logger
from relay.processes import (
    ProcessManager,
    StartError,
    claim_notify_socket,
    listen_with_retry,
    notify,
    reserve,
    stop_all,
    wait_until_ready,
)
from relay.supervisor import plan, secrets
from relay.supervisor.state import Lock, MetricsUrls, Pids, Ready, StateFolder

START_TIMEOUT: Final = 60.0
"""Seconds within which every process must be ready."""
_MARGIN: Final = 3.0
"""Seconds beyond a process's ``drain`` before it is killed."""
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_EDGE: Final = ""
"""The edge's name in mappings by cluster; no cluster can have it."""

log = get_logger()


class ProgramFailed(Exception):
    """The relay did not start; the log has the reason. Exit code 1."""


def run(
    config: UpConfig,
    folder: StateFolder,
    environ: Mapping[str, str],
    announce: Callable[[Ready], None],
) -> None:
    """Run the relay until SIGTERM, SIGINT or SIGHUP; a second signal ends it at once.

    ``announce`` is called once, when everything is ready. Kernels are not stopped.

    Raises:
        StartError: something must be corrected before the start.
        ProgramFailed: a process did not start.
    """
    claim_notify_socket()
    folder.create()
    if config.shared_uid:
        log.warning("no_isolation_between_users", uid=os.geteuid())
    with Lock(folder), contextlib.ExitStack() as ports:
        folder.status.unlink(missing_ok=True)
        with _writing(folder):
            token = secrets.provide(folder, config, time.time())
        listeners = {
            name: ports.enter_context(listen_with_retry(settings.host, settings.port))
            for name, settings in (("https", config.https), ("wss", config.wss))
        }
        reserved = _ReservedPorts(
            agents={
                name: ports.enter_context(reserve(plan.LOCAL_HOST)) for name in config.clusters
            },
            metrics={
                name: ports.enter_context(reserve(plan.LOCAL_HOST))
                for name in (_EDGE, *config.clusters)
            },
        )
        with _writing(folder):
            supervisor = _Supervisor(config, folder, environ, listeners, reserved)
        try:
            asyncio.run(supervisor.run(token, announce))
        finally:
            folder.status.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: StateFolder) -> Iterator[None]:
    """Raise `StartError` where a file of the state directory cannot be written."""
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot write in {folder.path}: {error.strerror}") from error


class _ReservedPorts(NamedTuple):
    """Ports that stay reserved while their processes are restarted."""

    agents: Mapping[str, socket.socket]
    metrics: Mapping[str, socket.socket]
    """By cluster; the edge's under `_EDGE`."""


class _Supervisor:
    """One run, from the start of the first process to the end of the last."""

    def __init__(
        self,
        config: UpConfig,
        folder: StateFolder,
        environ: Mapping[str, str],
        listeners: Mapping[str, socket.socket],
        reserved: _ReservedPorts,
    ) -> None:
        self._folder = folder
        self._listeners = listeners
        self._stop = asyncio.Event()
        self._change = asyncio.Event()
        self._ready: Ready | None = None
        """The announced state; None before and after."""
        ports = {name: _port(each) for name, each in reserved.agents.items()}
        metrics = {name: _port(each) for name, each in reserved.metrics.items()}
        pages = {
            name: f"{_url('http', plan.LOCAL_HOST, port)}/metrics" for name, port in metrics.items()
        }
        self._metrics = MetricsUrls(
            edge=pages[_EDGE], agents={name: pages[name] for name in config.clusters}
        )
        https, wss = (_port(listeners[name]) for name in ("https", "wss"))
        self._urls = (
            _url("https", config.https.host, https) + config.base_url,
            _url("wss", config.wss.host, wss) + config.base_url,
        )
        settings = plan.edge_config(
            folder, config, https=https, wss=wss, metrics=metrics[_EDGE], agents=ports
        )
        self._edge_grace = settings.drain + _MARGIN
        self._edge = self._manager("edge", settings, environ, listeners)
        self._agents: dict[str, ProcessManager] = {}
        self._agent_grace = 0.0
        for name, port in ports.items():
            agent = plan.agent_config(folder, config, name, port=port, metrics=metrics[name])
            self._agent_grace = agent.drain + _MARGIN
            self._agents[name] = self._manager(f"agent-{name}", agent, environ, {})

    async def run(self, token: str, announce: Callable[[Ready], None]) -> None:
        """Start everything, announce it, and stop it after a signal."""
        self._handle_signals()
        failure: str | None = None
        async with asyncio.TaskGroup() as group:
            for manager in self._all:
                group.create_task(manager.run(), name=f"keep {manager.command.name}")
            try:
                failure = await self._wait_until_ready()
                if failure is None and not self._stop.is_set():
                    self._announce(token, announce)
                    await self._stop.wait()
            finally:
                await self._end()
        if failure is not None:
            raise ProgramFailed(failure)

    @property
    def _all(self) -> tuple[ProcessManager, ...]:
        return (*self._agents.values(), self._edge)

    def _manager(
        self,
        name: str,
        settings: EdgeConfig | AgentConfig,
        environ: Mapping[str, str],
        listeners: Mapping[str, socket.socket],
    ) -> ProcessManager:
        command = plan.command(
            name.partition("-")[0],
            name,
            plan.write(self._folder, name, settings),
            os.getpid(),
            environ,
            {key: listener.fileno() for key, listener in listeners.items()},
        )
        return ProcessManager(command, self._on_change)

    async def _wait_until_ready(self) -> str | None:
        """Return None when all processes are ready, or on a signal; else what failed to start."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                failed = await wait_until_ready(self._all, self._change, self._stop)
        except TimeoutError:
            late = ", ".join(each.command.name for each in self._all if not each.ready)
            return f"not ready after {START_TIMEOUT:.0f} s: {late}"
        if failed is None or failed.last_exit is None:
            return None
        return f"{failed.command.name} does not start: exit code {failed.last_exit.code}"

    def _announce(self, token: str, announce: Callable[[Ready], None]) -> None:
        https_url, wss_url = self._urls
        self._ready = Ready(
            https_url=https_url,
            wss_url=wss_url,
            token=token,
            ca=str(self._folder.authority[0]),
            clusters=tuple(self._agents),
            metrics=self._metrics,
            pids=self._pids(),
        )
        self._write_status(self._ready)
        notify("READY=1")
        announce(self._ready)

    def _on_change(self) -> None:
        self._change.set()
        edge = self._edge.child
        # An edge that was just spawned has not reported its workers yet.
        if self._ready is None or (edge is not None and not edge.workers):
            return
        pids = self._pids()
        if pids != self._ready.pids:
            self._ready = msgspec.structs.replace(self._ready, pids=pids)
            self._write_status(self._ready)

    def _write_status(self, ready: Ready) -> None:
        try:
            self._folder.write_status(ready)
        except OSError as error:
            # The service itself does not depend on this file.
            log.warning("relay_json_not_written", error=str(error))

    def _pids(self) -> Pids:
        edge = self._edge.child
        return Pids(
            supervisor=os.getpid(),
            edge=edge.workers if edge else (),
            agents={
                name: (manager.child.pid,) if manager.child else ()
                for name, manager in self._agents.items()
            },
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        log.info("stopping", signal=number.name, at_once=self._stop.is_set())
        if self._stop.is_set():
            for manager in self._all:
                manager.kill()
        self._stop.set()
        self._change.set()

    async def _end(self) -> None:
        """Stop the edge, so that no requests come in any more, then the agents."""
        self._ready = None
        self._folder.status.unlink(missing_ok=True)
        notify("STOPPING=1")
        # While a listening socket is open, connections wait in its backlog instead of failing.
        for listener in self._listeners.values():
            listener.close()
        await self._edge.stop(self._edge_grace)
        await stop_all(tuple(self._agents.values()), self._agent_grace)


def _port(reserved: socket.socket) -> int:
    port: int = reserved.getsockname()[1]
    return port


def _url(scheme: str, host: str, port: int) -> str:
    """Make a URL for this machine; a listener on every interface is reached through loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not listened on
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
