"""The kernel process: jupyter_client's manager and whatever provisioner the kernelspec names.

The only place that launches, signals and ends a kernel, and where jupyter_client's errors turn
into ours. Calls may block for as long as a provisioner likes: that is why every kernel has a
holder of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

from relay.bridge.messages import Channel
from relay.errors import StartFailed
from relay.holder.sockets import Endpoints

_LOCAL: Final = "local-provisioner"


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to launch and how. ``ipc_prefix`` is where ipc sockets go, a path and a dash number."""

    kernel_id: str
    name: str
    environment: dict[str, str]
    working_folder: str | None
    connection_file: Path
    log_file: Path
    ipc_prefix: Path
    shutdown_timeout: float


class KernelProcess:
    """One kernel as jupyter_client manages it, over ipc where the kernel can, else over TCP."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._manager = self._build("ipc")
        self._log: IO[bytes] | None = None
        self._log_start = 0
        """Bytes that earlier launches left in the log."""

    def _build(self, transport: str) -> AsyncKernelManager:
        plan = self._plan
        manager = AsyncKernelManager(
            kernel_name=plan.name,
            kernel_id=plan.kernel_id,
            connection_file=str(plan.connection_file),
            transport=transport,
            shutdown_wait_time=plan.shutdown_timeout,
            # Within a folder that nobody else may enter, ipc needs no encryption.
            transport_encryption="disabled" if transport == "ipc" else "auto",
        )
        manager.ip = str(plan.ipc_prefix) if transport == "ipc" else "127.0.0.1"
        return manager

    @property
    def transport(self) -> str:
        """``ipc`` or ``tcp``."""
        return str(self._manager.transport)

    def use_tcp(self) -> None:
        """Give up ipc: this kernel cannot, or its provisioner launches it elsewhere."""
        self._plan.connection_file.unlink(missing_ok=True)
        self._manager = self._build("tcp")

    async def launch(self) -> Endpoints:
        """Start the process. Raises `StartFailed`."""
        if self.transport == "ipc" and not self._is_local():
            self.use_tcp()
        with contextlib.suppress(OSError):
            self._log_start = self._plan.log_file.stat().st_size
        try:
            await self._manager.start_kernel(**self._launch_arguments())
        except NoSuchKernel as error:
            msg = f"There is no kernelspec named {self._plan.name!r}."
            raise StartFailed(msg) from error
        except Exception as error:
            # Provisioners raise what they like; its words may name paths, so they go to the log.
            msg = f"The kernel could not be launched ({type(error).__name__})."
            raise StartFailed(msg) from error
        return self._endpoints()

    def _is_local(self) -> bool:
        try:
            spec = self._manager.kernel_spec
        except NoSuchKernel:
            return True
        provisioner = (spec.metadata or {}).get("kernel_provisioner", {}) if spec else {}
        return bool(provisioner.get("provisioner_name", _LOCAL) == _LOCAL)

    def _launch_arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "env": dict(self._plan.environment),
            # Else an ipykernel ends half a second after the holder does.
            "independent": True,
        }
        if self._plan.working_folder is not None:
            arguments["cwd"] = self._plan.working_folder
        if self._is_local():
            if self._log is None:
                self._log = self._open_log()
            arguments["stdout"] = arguments["stderr"] = self._log
        return arguments

    def _open_log(self) -> IO[bytes]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return open(os.open(self._plan.log_file, flags, 0o600), "wb", buffering=0)  # noqa: PTH123

    def _endpoints(self) -> Endpoints:
        manager = self._manager
        ports = {
            Channel.SHELL: manager.shell_port,
            Channel.IOPUB: manager.iopub_port,
            Channel.STDIN: manager.stdin_port,
            Channel.CONTROL: manager.control_port,
        }
        return Endpoints(
            addresses={channel: self._address(port) for channel, port in ports.items()},
            heartbeat=self._address(manager.hb_port),
            curve_public=manager.curve_publickey,
            curve_secret=manager.curve_secretkey,
        )

    def _address(self, port: int) -> str:
        separator = "-" if self._manager.transport == "ipc" else ":"
        return f"{self._manager.transport}://{self._manager.ip}{separator}{port}"

    @property
    def key(self) -> bytes:
        """The key that signs this kernel's messages."""
        return bytes(self._manager.session.key)

    @property
    def signature_scheme(self) -> str:
        """The scheme that goes with `key`, as in the connection file."""
        return str(self._manager.session.signature_scheme)

    @property
    def pid(self) -> int | None:
        """The local process, where there is one."""
        pid = getattr(self._manager.provisioner, "pid", None)
        return pid if isinstance(pid, int) and self._is_local() else None

    async def exit_code(self) -> int | None:
        """None while the process runs."""
        provisioner = self._manager.provisioner
        if provisioner is None or not provisioner.has_process:
            return -1
        code: int | None = await provisioner.poll()
        return code

    async def interrupt(self) -> None:
        """Interrupt by signal or message, as the kernelspec says."""
        await self._manager.interrupt_kernel()

    async def stop(self, *, now: bool, restart: bool = False) -> None:
        """End the process: politely first unless ``now``; what it left behind goes too."""
        await self._manager.shutdown_kernel(now=now, restart=restart)
        if not restart and self._log is not None:
            self._log.close()
            self._log = None

    async def collect(self) -> None:
        """Clean up after a process that ended by itself, so that it can be launched again."""
        if self._manager.provisioner is not None and self._manager.has_kernel:
            await asyncio.wait_for(self._manager.provisioner.wait(), 10)
        await self._manager.cleanup_resources(restart=True)

    def log_tail(self, limit: int = 2000) -> str:
        """What the process itself printed since its launch, the last ``limit`` bytes of it."""
        try:
            with self._plan.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(min(self._log_start, size), size - limit))
                return file.read().decode(errors="replace")
        except OSError:
            return ""
