"""Base64url without padding (RFC 7515 §2), in which one text stands for the bytes and no other.

Libraries differ in the padding and the unused last bits that they tolerate: a token that can be
spelt in several ways dodges every list of tokens.
"""

from __future__ import annotations

import base64


def decode(segment: str) -> bytes:
    """The bytes of ``segment``, whether canonical or not. Raises ``ValueError``."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def is_canonical(segment: str) -> bool:
    """Tell whether ``segment``, made of the alphabet's characters, is how its bytes are spelt.

    The last character may have bits that stand for nothing (RFC 4648 §3.5).
    """
    if len(segment) % 4 == 1:
        return False
    return base64.urlsafe_b64encode(decode(segment)).rstrip(b"=") == segment.encode()
