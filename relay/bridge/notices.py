"""What a client gets in place of a message that it cannot be given."""

from __future__ import annotations

from typing import Final

import msgspec

from relay.bridge.messages import Channel, Message, parse_header, synthetic

_REPLY: Final = "_reply"


def left_out(message: Message, why: str) -> Message:
    """A message that says what was left out, and ``why`` (the end of a sentence).

    A reply stays one, so that its request does not wait for ever; anything else becomes a line on
    stderr of the cell that it belongs to. The same message always gives the same one: agents take
    over from each other in the middle of it.
    """
    header = parse_header(message.header)
    text = f"[relay] A {header.msg_type} message of {message.size} bytes is left out: {why}."
    if message.channel in {Channel.SHELL, Channel.CONTROL} and header.msg_type.endswith(_REPLY):
        channel: Channel = message.channel
        msg_type = header.msg_type
        content = {"status": "error", "ename": "MessageLeftOut", "evalue": text, "traceback": []}
    else:
        channel, msg_type = Channel.IOPUB, "stream"
        content = {"name": "stderr", "text": f"{text}\n"}
    return synthetic(
        channel,
        msg_type,
        content,
        session=header.session,
        msg_id=f"{header.msg_id}-left-out",
        date=str(header.date or ""),
        parent_header=message.parent_header,
    )


def with_seq(message: Message, position: str) -> Message:
    """The message with its place in the journal in its metadata, as ``relay_seq``.

    Metadata that is no JSON object stays as it is.
    """
    metadata = bytes(message.metadata).strip()
    if not (metadata.startswith(b"{") and metadata.endswith(b"}")):
        return message
    inner = metadata[1:-1].strip()
    # Last: should a kernel have put one there, readers of JSON take ours.
    comma = b"," if inner else b""
    spliced = b'{%b%b"relay_seq":"%b"}' % (inner, comma, position.encode())
    return msgspec.structs.replace(message, metadata=spliced)
