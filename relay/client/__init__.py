"""A client for scripts: code runs once, and each output arrives once and in order.

    async with RelayClient.from_environment() as relay:
        kernel = await relay.start("python3")
        async for output in kernel.execute("print(1)"):
            print(output)

``client`` and ``kernel`` are what a script calls, ``executions`` and ``outputs`` what it iterates
over; ``kernel_session`` (with ``outbox``, ``inbox``, ``delivery_tracker`` and ``kernel_message``)
matches messages with requests and does no I/O; ``channels``, ``sockets`` and ``rest`` are the
connections; ``backoff``, ``errors`` and ``settings`` decide when to retry. See docs/client.md.
"""

from __future__ import annotations

from relay.client.client import RelayClient
from relay.client.errors import GaveUp, KernelGone, KernelRestarted, Replaced
from relay.client.executions import Execution, Messages, OnInput
from relay.client.kernel import Kernel
from relay.client.kernel_message import KernelMessage
from relay.client.outputs import (
    ClearOutput,
    DisplayData,
    Error,
    ExecuteResult,
    InputRequest,
    Other,
    Output,
    Result,
    Stream,
    UpdateDisplayData,
)
from relay.client.settings import Settings

__all__ = [
    "ClearOutput",
    "DisplayData",
    "Error",
    "ExecuteResult",
    "Execution",
    "GaveUp",
    "InputRequest",
    "Kernel",
    "KernelGone",
    "KernelMessage",
    "KernelRestarted",
    "Messages",
    "OnInput",
    "Other",
    "Output",
    "RelayClient",
    "Replaced",
    "Result",
    "Settings",
    "Stream",
    "UpdateDisplayData",
]
