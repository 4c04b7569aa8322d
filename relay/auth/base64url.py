"""Base64url without padding (RFC 7515 §2), accepted in its one canonical spelling only.

Libraries differ in the padding and the unused last bits that they tolerate: a token that can be
spelt in several ways gets past every list of revoked tokens.
"""

from __future__ import annotations

import base64


def decode(segment: str) -> bytes:
    """Decode ``segment``, canonical or not. Raises ``ValueError``."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def is_canonical(segment: str) -> bool:
    """Whether ``segment``, made of the alphabet's characters, is how its bytes are spelt.

    The last character may have unused bits (RFC 4648 §3.5).
    """
    if len(segment) % 4 == 1:
        return False
    return base64.urlsafe_b64encode(decode(segment)).rstrip(b"=") == segment.encode()
