"""Messages that no kernel sent, in the kernel's name, and requests of the holder's own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from relay.bridge.messages import Buffer, Channel, Message, synthetic


class SyntheticMessages:
    """Speaks for one kernel."""

    def __init__(self) -> None:
        self.kernel_session = ""
        """What the kernel calls its own session, once it has been heard."""
        self.own_session = uuid.uuid4().hex
        """That of the holder's own requests."""

    def say(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, object],
        parent_header: Buffer,
    ) -> Message:
        """A message to clients that seems to be the kernel's."""
        return synthetic(
            channel,
            msg_type,
            content,
            # A foreign session makes JupyterLab cancel its iopub handlers.
            session=self.kernel_session or self.own_session,
            msg_id=uuid.uuid4().hex,
            date=_now_text(),
            parent_header=parent_header,
        )

    def status(self, state: str, parent_header: Buffer) -> Message:
        """A status that seems to be the kernel's."""
        return self.say(Channel.IOPUB, "status", {"execution_state": state}, parent_header)

    def error(self, channel: Channel, request: str, ename: str, evalue: str, to: Buffer) -> Message:
        """The reply to a request of that type, whose header is ``to``, that it has failed."""
        reply = request.removesuffix("_request") + "_reply"
        content = {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}
        return self.say(channel, reply, content, to)

    def known_info(self, channel: Channel, info: Buffer, request: Buffer) -> list[Message]:
        """What a kernel says to a kernel_info_request: busy, the reply with ``info``, idle."""
        reply = self.say(channel, "kernel_info_reply", {}, request)
        reply = msgspec.structs.replace(reply, content=info)
        return [self.status("busy", request), reply, self.status("idle", request)]

    def refusal(
        self, channel: Channel, request: str, ename: str, evalue: str, to: Buffer
    ) -> list[Message]:
        """What a kernel says to a request of that type, whose header is ``to``, that fails."""
        reply = self.error(channel, request, ename, evalue, to)
        said = [self.status("busy", to), reply, self.status("idle", to)]
        if request == "execute_request":
            # Clients show what comes on iopub, and nothing of the reply.
            content = {"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]}
            said.insert(1, self.say(Channel.IOPUB, "error", content, to))
        return said

    def ask_info(self, channel: Channel, subshell: str = "") -> tuple[str, Message]:
        """A kernel_info_request to a kernel, or one of its subshells, and its ``msg_id``."""
        msg_id = uuid.uuid4().hex
        message = synthetic(
            channel,
            "kernel_info_request",
            {},
            session=self.own_session,
            msg_id=msg_id,
            date=_now_text(),
        )
        if subshell:
            header = msgspec.json.decode(message.header, type=dict[str, object])
            raw = msgspec.json.encode({**header, "subshell_id": subshell})
            message = msgspec.structs.replace(message, header=raw)
        return msg_id, message


def _now_text() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
