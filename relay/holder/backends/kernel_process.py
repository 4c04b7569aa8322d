"""The kernel process: jupyter_client's manager and whatever provisioner the kernelspec names.

The only place that launches, signals and ends a kernel, and where jupyter_client's errors turn
into ours. Calls may block for as long as a provisioner likes: that is why every kernel has a
holder of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import socket
import subprocess
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec
import structlog
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from relay.bridge.messages import Channel
from relay.errors import DiskFull, StartFailed
from relay.files import is_disk_error
from relay.holder.backends.pidfd_process import PidfdProcess
from relay.holder.backends.sockets import Endpoints
from relay.kernel_folders import KernelRecord

log = structlog.get_logger(__name__)

_LOCAL: Final = "local-provisioner"
_PARAMETER: Final = re.compile(r"\{([A-Za-z0-9_]+)\}")
_PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to launch and how. ``ipc_prefix`` is where ipc sockets go, a path and a dash number."""

    kernel_id: str
    name: str
    environment: dict[str, str]
    parameters: dict[str, str] = {}
    working_folder: str | None
    connection_file: Path
    log_file: Path
    ipc_prefix: Path
    shutdown_timeout: float
    transport: Literal["ipc", "tcp"] = "ipc"
    """What is tried first."""
    port_range: str = ""
    """``first-last`` for TCP, empty for any free ports."""


class _Parameterised(KernelSpecManager):
    """Finds kernelspecs and puts the chosen parameters into their argv and env (JEP 87)."""

    def __init__(self, parameters: dict[str, str]) -> None:
        super().__init__()
        self._parameters = parameters

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernelspec of that name. Raises ``NoSuchKernel``."""
        spec = super().get_kernel_spec(kernel_name)
        spec.argv = [self._fill(argument) for argument in spec.argv]
        spec.env = {name: self._fill(value) for name, value in spec.env.items()}
        return spec

    def _fill(self, text: str) -> str:
        # In one pass: a value that looks like a parameter is not one.
        return _PARAMETER.sub(lambda found: self._parameters.get(found[1], found[0]), text)


class _Noted(KernelSpecManager):
    """Knows one kernelspec, as an earlier holder launched it: it may have changed since."""

    def __init__(self, noted: dict[str, Any]) -> None:
        super().__init__()
        self._spec = KernelSpec(**noted)

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernelspec, whatever the name."""
        del kernel_name
        return self._spec


def _use_ports(manager: AsyncKernelManager, port_range: str) -> None:
    """Give the manager five free ports of a range. Raises `StartFailed`."""
    first, _, last = port_range.partition("-")
    candidates = list(range(int(first), int(last) + 1))
    # Holders choose at the same time: they rarely want the same ones first.
    random.shuffle(candidates)
    free = itertools.islice(filter(_is_free, candidates), len(_PORTS))
    ports = dict(zip(_PORTS, free, strict=False))
    if len(ports) < len(_PORTS):
        msg = f"There are no five free ports in {port_range} (kernels.port_range)."
        raise StartFailed(msg)
    manager.cache_ports = False
    for name, port in ports.items():
        setattr(manager, name, port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class KernelProcess:
    """One kernel as jupyter_client manages it, over ipc where the kernel can, else over TCP."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._specs: KernelSpecManager = _Parameterised(plan.parameters)
        self._manager = self._build(plan.transport)
        self.noted: dict[str, Any] = {}
        """Of the latest launch: `KernelRecord`'s ``kernelspec`` and ``provisioner``."""
        self._log: IO[bytes] | None = None
        self._log_start = 0
        """Bytes that earlier launches left in the log."""

    def _build(self, transport: str, *, choose_ports: bool = True) -> AsyncKernelManager:
        plan = self._plan
        manager = AsyncKernelManager(
            kernel_name=plan.name,
            kernel_id=plan.kernel_id,
            connection_file=str(plan.connection_file),
            transport=transport,
            shutdown_wait_time=plan.shutdown_timeout,
            kernel_spec_manager=self._specs,
            # Within a folder that nobody else may enter, ipc needs no encryption.
            transport_encryption="disabled" if transport == "ipc" else "auto",
        )
        manager.ip = str(plan.ipc_prefix) if transport == "ipc" else "127.0.0.1"
        if transport == "tcp" and plan.port_range and choose_ports:
            _use_ports(manager, plan.port_range)
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
            if isinstance(error, OSError) and is_disk_error(error):
                msg = f"The kernel's files cannot be written: {error.strerror}."
                raise DiskFull(msg) from error
            # Provisioners raise what they like; its words may name paths, so they go to the log.
            msg = f"The kernel could not be launched ({type(error).__name__})."
            raise StartFailed(msg) from error
        await self._note()
        return self._endpoints()

    async def _note(self) -> None:
        """Note what another holder needs to adopt the kernel."""
        self.noted = {}
        provisioner, spec = self._manager.provisioner, self._manager.kernel_spec
        if provisioner is None or spec is None:
            return
        try:
            info = await provisioner.get_provisioner_info()
            # It is in the connection file, and its key would have to be encoded.
            info.pop("connection_info", None)
            noted = {
                "kernelspec": {**spec.to_dict(), "resource_dir": spec.resource_dir},
                "provisioner": json.loads(json.dumps(info)),
            }
        except Exception as error:  # noqa: BLE001 - a provisioner raises what it likes
            # Without it the kernel ends with its holder.
            log.warning("kernel_record_failed", problem=repr(error))
            return
        self.noted = noted

    async def adopt(self, record: KernelRecord) -> Endpoints:
        """Take over the process that an earlier holder launched, dead or alive (`exit_code`).

        Raises what its provisioner raises.
        """
        info = json.loads(self._plan.connection_file.read_bytes())
        self._specs = _Noted(record.kernelspec)
        manager = self._manager = self._build(info["transport"], choose_ports=False)
        manager.load_connection_info(info)
        # Else jupyter_client chooses new ports when it launches the kernel again.
        manager.cache_ports = False
        # It has been started, if not by this object; else it cannot be stopped and started again.
        manager._attempted_start = True  # noqa: SLF001
        factory = KernelProvisionerFactory.instance(parent=manager.parent)
        provisioner = factory.create_provisioner_instance(
            self._plan.kernel_id, manager.kernel_spec, manager
        )
        noted = {**(record.provisioner or {}), "connection_info": manager.get_connection_info()}
        await provisioner.load_provisioner_info(noted)
        manager.provisioner = provisioner
        started = record.kernel_started
        if isinstance(provisioner, LocalProvisioner) and record.kernel_pid and started is not None:
            found = PidfdProcess.find(record.kernel_pid, started)
            provisioner.process = found  # type: ignore[assignment]
            # By its group's number it could hit another's: the process itself knows better.
            provisioner.pgid = None
        await self._note()
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
        process = getattr(self._manager.provisioner, "process", None)
        return process.pid if isinstance(process, subprocess.Popen | PidfdProcess) else None

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
