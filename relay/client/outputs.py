"""What a cell gives, typed as the messaging specification has it.

https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

from relay.bridge.messages import Buffer
from relay.client.kernel_message import KernelMessage, convert


class Stream(msgspec.Struct, frozen=True):
    """Text on stdout or stderr. The relay's own notices, of a gap say, are on stderr."""

    name: Literal["stdout", "stderr"]
    text: str


class DisplayData(msgspec.Struct, frozen=True):
    """Something to show, in several forms: ``data`` by MIME type."""

    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}
    buffers: tuple[Any, ...] = ()
    """Binary data: bytes, or views of large ones."""

    @property
    def display_id(self) -> str | None:
        """By which an `UpdateDisplayData` names what it replaces."""
        return self.transient.get("display_id")


class UpdateDisplayData(msgspec.Struct, frozen=True):
    """What now is to be shown in place of an earlier display."""

    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}
    buffers: tuple[Any, ...] = ()
    """Binary data: bytes, or views of large ones."""

    @property
    def display_id(self) -> str | None:
        """Names the display."""
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
    """What was shown so far is to go; with ``wait`` only when more comes."""

    wait: bool = False


class Other(msgspec.Struct, frozen=True):
    """An output that this version does not know, or that does not keep to the specification."""

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
_ASIDE: Final = frozenset(
    {"comm_close", "comm_msg", "comm_open", "debug_event", "execute_input", "status"}
)
"""What the kernel says of a cell that is no output of it; see ``Kernel.messages``."""


class InputRequest(msgspec.Struct, frozen=True):
    """The cell asks for a line of text."""

    prompt: str = ""
    password: bool = False


class Result(msgspec.Struct, frozen=True):
    """All that came of a cell."""

    msg_id: str
    outputs: list[Output]
    reply: dict[str, Any] | None
    """The content of the ``execute_reply``; None where it came before the position that an
    execution was resumed from."""

    @property
    def ok(self) -> bool:
        """Whether the kernel replied that all went well."""
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
        """The exception, if one ended the cell."""
        return next((each for each in self.outputs if isinstance(each, Error)), None)

    @property
    def value(self) -> str | None:
        """The value of the last expression as text, if there was one."""
        for each in self.outputs:
            if isinstance(each, ExecuteResult):
                return each.data.get("text/plain")
        return None

    def _text(self, name: str) -> str:
        streams = (each for each in self.outputs if isinstance(each, Stream))
        return "".join(each.text for each in streams if each.name == name)


def read_output(message: KernelMessage) -> Output | None:
    """The output in an iopub message; None where it is something else."""
    if message.msg_type in _ASIDE:
        return None
    content = message.content
    kind = _KINDS.get(message.msg_type)
    read = convert(content, kind) if kind is not None else None
    if read is None:
        return Other(message.msg_type, content, message.buffers)
    if isinstance(read, DisplayData | UpdateDisplayData):
        return msgspec.structs.replace(read, buffers=message.buffers)
    return read
