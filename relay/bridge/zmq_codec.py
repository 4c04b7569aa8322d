"""Jupyter messages to and from signed ZMQ multiparts.

``[identity…, b"<IDS|MSG>", signature, header, parent_header, metadata, content, buffer…]``, where
the signature is the hex HMAC over the four JSON parts; the buffers are not covered. Source:
https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from relay.bridge.messages import Buffer, Channel, Message
from relay.errors import BadKernelMessage

DELIMITER: Final = b"<IDS|MSG>"
_FIXED_PARTS: Final = 5  # signature and four JSON parts


class Signer:
    """Signs what goes to one kernel and verifies what comes from it.

    An empty key means no signatures, both ways, as in Jupyter. Raises ``ValueError`` for a scheme
    other than ``hmac-`` and the name of a hash that Python has.
    """

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        kind, _, digest = scheme.partition("-")
        if kind != "hmac" or not digest:
            raise ValueError("a signature scheme is written hmac-<hash>")
        keyed = hmac.new(key, digestmod=digest)
        self._keyed = keyed if key else None
        """Copied for each message: the key is hashed once."""

    def serialize(self, message: Message) -> list[Buffer]:
        """Give the multipart to send, without identities; the parts are not copied."""
        parts = message.parts
        return [DELIMITER, self._sign(parts), *parts]

    def parse(self, channel: Channel, parts: Sequence[Buffer]) -> Message:
        """Cut a multipart from the kernel, whatever identities precede the delimiter.

        Raises ``BadKernelMessage`` where the delimiter or a part is missing or the signature does
        not fit. What the JSON parts hold is not looked at.
        """
        try:
            start = parts.index(DELIMITER) + 1
        except ValueError:
            raise BadKernelMessage("The kernel sent a multipart without a delimiter") from None
        if len(parts) - start < _FIXED_PARTS:
            raise BadKernelMessage("The kernel sent a multipart with too few parts")
        signature, *signed = parts[start:]
        if self._keyed is not None and not hmac.compare_digest(signature, self._sign(signed)):
            raise BadKernelMessage("The kernel sent a message with a wrong signature")
        return Message.from_parts(channel, signed)

    def _sign(self, parts: Sequence[Buffer]) -> bytes:
        """The signature of a message's parts: of the four that are JSON."""
        if self._keyed is None:
            return b""
        code = self._keyed.copy()
        header, parent_header, metadata, content, *_ = parts
        code.update(header)
        code.update(parent_header)
        code.update(metadata)
        code.update(content)
        return code.hexdigest().encode()
