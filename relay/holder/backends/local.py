"""The backend for kernels that jupyter_client launches: ZeroMQ sockets and signed messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from relay.bridge.messages import Channel, Message
from relay.bridge.zmq_codec import Signer
from relay.errors import BadKernelMessage
from relay.holder.backends.base import MessageHandler
from relay.holder.backends.kernel_process import KernelProcess, LaunchPlan
from relay.holder.backends.sockets import Endpoints, KernelSockets
from relay.kernel_folders import KernelRecord, process_started

log = structlog.get_logger(__name__)


class ZmqChannel:
    """Signed messages over the ZeroMQ sockets of one kernel process.

    ``identities`` are those of the sockets: the holder's own first, then those of earlier holders
    whose replies are received as well.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        signer: Signer,
        identities: Sequence[str],
        on_message: MessageHandler,
    ) -> None:
        self._signer = signer
        self._on_message = on_message
        own, *inherited = (identity.encode() for identity in identities)
        self._sockets = KernelSockets(endpoints, own, self._on_multipart, inherited)

    @property
    def is_alive(self) -> bool:
        """Whether a heartbeat was answered."""
        return self._sockets.is_alive

    def send(self, message: Message) -> None:
        """Sign a message and hand it to ZeroMQ."""
        self._sockets.send(message.channel, self._signer.serialize(message))

    def beat(self) -> None:
        """Send a heartbeat and take note of the answers to earlier ones."""
        self._sockets.beat()

    def drop_inherited(self) -> None:
        """Close the sockets with the identities of earlier holders."""
        self._sockets.drop_inherited()

    def close(self) -> None:
        """Hand over what has arrived, then close."""
        self._sockets.close()

    def _on_multipart(self, channel: Channel, parts: list[bytes]) -> None:
        try:
            message = self._signer.parse(channel, parts)
        except BadKernelMessage as error:
            log.warning("malformed_kernel_message", channel=channel.wire, problem=str(error))
            return
        self._on_message(message)


class LocalBackend:
    """A `KernelBackend`: one kernel as jupyter_client manages it.

    ``identity`` is new for each holder: a kernel tells by it to which socket a reply goes.
    """

    def __init__(self, plan: LaunchPlan, identity: str) -> None:
        self._process = KernelProcess(plan)
        self._identity = identity
        self._identities = [identity]
        """The holder's own, and those of dead holders that it stands in for."""
        self._channel: ZmqChannel | None = None

    @property
    def notes(self) -> Mapping[str, Any]:
        """The kernel's process, its kernelspec and provisioner, and identities of sockets."""
        pid = self._process.pid
        return {
            "identities": self._identities,
            "kernel_pid": pid,
            "kernel_started": process_started(pid) if pid else None,
            **self._process.noted,
        }

    @property
    def log_fields(self) -> Mapping[str, Any]:
        """The kernel's pid and transport."""
        return {"kernel_pid": self._process.pid, "transport": self._process.transport}

    async def launch(self, on_message: MessageHandler) -> ZmqChannel:
        """Start the process. Raises `StartFailed` or `DiskFull`."""
        endpoints = await self._process.launch()
        return self._connect(endpoints, [self._identity], on_message)

    async def adopt(self, record: KernelRecord, on_message: MessageHandler) -> ZmqChannel:
        """Take over the process that an earlier holder launched, dead or alive.

        Raises what its provisioner raises.
        """
        endpoints = await self._process.adopt(record)
        return self._connect(endpoints, [self._identity, *record.identities], on_message)

    def _connect(
        self, endpoints: Endpoints, identities: list[str], on_message: MessageHandler
    ) -> ZmqChannel:
        self._identities = identities
        signer = Signer(self._process.key, self._process.signature_scheme)
        self._channel = ZmqChannel(endpoints, signer, identities, on_message)
        return self._channel

    def forget_predecessors(self) -> None:
        """Close the sockets with the identities of earlier holders."""
        self._identities = [self._identity]
        if self._channel is not None:
            self._channel.drop_inherited()

    async def fall_back(self) -> bool:
        """Use TCP from now on, if it was ipc: some kernels' ZeroMQ has no ipc."""
        if self._process.transport == "tcp":
            return False
        await self._process.stop(now=True)
        self._process.use_tcp()
        return True

    async def poll(self) -> int | None:
        """None while the process runs, then its exit code."""
        return await self._process.exit_code()

    async def interrupt(self) -> None:
        """Interrupt by signal or message, as the kernelspec says."""
        await self._process.interrupt()

    async def end(self, *, now: bool, relaunch: bool = False) -> None:
        """End the process: politely first unless ``now``."""
        await self._process.stop(now=now, restart=relaunch)

    async def clean_up(self) -> None:
        """Collect a process that ended by itself, so that it can be launched again."""
        await self._process.collect()

    def trim_log(self, limit: int) -> None:
        """Empty the process's log where it is over ``limit`` bytes."""
        self._process.log.trim(limit)

    def log_tail(self) -> str:
        """The end of what the process has printed since its launch."""
        return self._process.log.tail()
