"""A client for scripts: code runs once, each output comes once and in its order.

    async with RelayClient.from_environment() as relay:
        kernel = await relay.start("python3")
        async for output in kernel.execute("print(1)"):
            print(output)

docs/client.md tells more.
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
