"""The outputs of a cell, typed as in the messaging specification.

https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

from relay.bridge.messages import Buffer
from relay.client.kernel_message import KernelMessage, convert


class Stream(msgspec.Struct, frozen=True):
    """Text on stdout or stderr; the relay's own notices are on stderr."""

    name: Literal["stdout", "stderr"]
    text: str


class DisplayData(msgspec.Struct, frozen=True):
    """A display in several formats: ``data`` by MIME type."""

    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}
    buffers: tuple[Any, ...] = ()
    """Binary buffers: bytes, or views of large ones."""

    @property
    def display_id(self) -> str | None:
        """The name by which an `UpdateDisplayData` refers to this display."""
        return self.transient.get("display_id")


class UpdateDisplayData(msgspec.Struct, frozen=True):
    """A replacement of an earlier display's data."""

    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}
    buffers: tuple[Any, ...] = ()
    """Binary buffers: bytes, or views of large ones."""

    @property
    def display_id(self) -> str | None:
        """The name of the replaced display."""
        return self.transient.get("display_id")


class ExecuteResult(msgspec.Struct, frozen=True):
    """The value of the last expression."""

    execution_count: int | None
    data: dict[str, Any]
    metadata: dict[str, Any] = {}


class Error(msgspec.Struct, frozen=True):
    """An exception that ended the cell."""

    ename: str
    evalue: str
    traceback: list[str] = []


class ClearOutput(msgspec.Struct, frozen=True):
    """A request to clear the outputs so far; with ``wait`` only when more arrive."""

    wait: bool = False


class Other(msgspec.Struct, frozen=True):
    """An output of an unknown type, or one that does not match the specification."""

    msg_type: str
    content: dict[str, Any]
    buffers: tuple[Buffer, ...] = ()


Output: TypeAlias = (
    Stream | DisplayData | UpdateDisplayData | ExecuteResult | Error | ClearOutput | Other
)

_KINDS: Final[dict[str, type[Output]]] = {
    "stream": Stream,
    "display_data": DisplayData,
    "update_display_data": UpdateDisplayData,
    "execute_result": ExecuteResult,
    "error": Error,
    "clear_output": ClearOutput,
}
_NOT_OUTPUT: Final = frozenset(
    {"comm_close", "comm_msg", "comm_open", "debug_event", "execute_input", "status"}
)
"""Types of iopub messages of a cell that are not outputs; see ``Kernel.messages``."""


class InputRequest(msgspec.Struct, frozen=True):
    """A cell's request for a line of input."""

    prompt: str = ""
    password: bool = False


class Result(msgspec.Struct, frozen=True):
    """Everything that a cell produced."""

    msg_id: str
    outputs: list[Output]
    reply: dict[str, Any] | None
    """The content of the ``execute_reply``; None where the reply came before the position from
    which an execution was resumed."""

    @property
    def ok(self) -> bool:
        """Whether the reply's status is "ok"."""
        return self.reply is not None and self.reply.get("status") == "ok"

    @property
    def stdout(self) -> str:
        """All text on stdout."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """All text on stderr."""
        return self._text("stderr")

    @property
    def error(self) -> Error | None:
        """The exception that ended the cell, if there was one."""
        return next((each for each in self.outputs if isinstance(each, Error)), None)

    @property
    def value(self) -> str | None:
        """The value of the last expression as text, if there is one."""
        for each in self.outputs:
            if isinstance(each, ExecuteResult):
                return each.data.get("text/plain")
        return None

    def _text(self, name: str) -> str:
        streams = (each for each in self.outputs if isinstance(each, Stream))
        return "".join(each.text for each in streams if each.name == name)


def read_output(message: KernelMessage) -> Output | None:
    """Return the output in an iopub message; None where it is not an output."""
    if message.msg_type in _NOT_OUTPUT:
        return None
    content = message.content
    kind = _KINDS.get(message.msg_type)
    read = convert(content, kind) if kind is not None else None
    if read is None:
        return Other(message.msg_type, content, message.buffers)
    if isinstance(read, DisplayData | UpdateDisplayData):
        return msgspec.structs.replace(read, buffers=message.buffers)
    return read
