"""Settings of the client: timeouts, retries and memory."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client waits, and how much it keeps; all times are in seconds.

    Raises ``ValueError`` for values that are not positive.
    """

    give_up_after: float = 300.0
    """How long the relay may be unavailable, without a break, before `GaveUp` is raised."""
    silent_after: float = 60.0
    """A WebSocket without any message or ping for so long counts as broken. The relay pings every
    ``websocket.ping_interval`` (25 s), which must be less."""
    connect_timeout: float = 20.0
    """For one connection, TLS included. Linux repeats an unanswered attempt after 1, 3, 7, 15, 31
    and 63 s; a new try starts over, and so notices soon when a network is back."""
    request_timeout: float = 180.0
    """For one REST request, starts included; the relay itself allows 150 s for a start."""
    queue_bytes: int = 64 * 1024 * 1024
    """Bytes of messages that wait to be read. Beyond, the WebSocket is not read, and the rest stays
    in the kernel's journal. One more message than that may be in memory."""
    requests_in_flight: int = 500
    """Requests that were sent and have no response yet; later ones wait here. The relay recognises
    the last ``sessions.repeats`` (1000) of them, which must be well above this number."""
    retry_at_most: float = 5.0
    """The longest delay between two tries to connect."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                msg = f"{name} must be more than 0"
                raise ValueError(msg)
