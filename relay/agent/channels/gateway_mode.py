"""Messages for a Jupyter Server in gateway mode, without what its WebSocket client cannot take.

That client (Tornado's) reads every frame as text. It closes the connection on a message over its
limit, connects again and meets the same message. So it gets no buffers, which only the binary form
could carry, and a notice in the place of a message that is too large.
"""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from relay import limits
from relay.bridge.messages import Message
from relay.bridge.notices import left_out

log = structlog.get_logger(__name__)

_ENVELOPE: Final = 1024
"""Bytes that the JSON form adds to a message's parts, at the most."""


def fitting(message: Message, limit: int) -> Message:
    """Return the message without its buffers, or a notice where it is over ``limit`` bytes.

    The same message always gives the same result: agents take over from each other in between.
    """
    if message.buffers:
        log.info("buffers_dropped", count=len(message.buffers))
        message = msgspec.structs.replace(message, buffers=())
    if message.size + _ENVELOPE <= limit:
        return message
    setting = "kernels.gateway_message_bytes"
    log.warning("message_too_large", size=message.size, limit=limit, setting=setting)
    limits.record(setting)
    return left_out(message, f"a Jupyter Server in gateway mode takes {limit} ({setting})")
