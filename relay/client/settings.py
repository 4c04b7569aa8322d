"""What a client may be told about waiting and memory."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client waits, and how much it keeps. Raises ``ValueError`` for no sensible value.

    All times are seconds.
    """

    give_up_after: float = 300.0
    """For how long the relay may be away, in one stretch, before `GaveUp` is raised."""
    silent_after: float = 60.0
    """A WebSocket on which not even a ping came for so long is taken for broken. The relay pings
    every ``websocket.ping_interval`` (25 s): it should be more than that."""
    connect_timeout: float = 20.0
    """For one connection to come about, TLS included. Where no answer comes, Linux asks again after
    1, 3, 7, 15, 31, 63 s; a new try begins anew, and so finds a network soon that is back."""
    request_timeout: float = 180.0
    """For one REST request, a start included: the relay itself allows 150 s for that."""
    queue_bytes: int = 64 * 1024 * 1024
    """Bytes of messages that wait to be read. Past that the WebSocket is not read any further; the
    rest waits in the kernel's journal. One message more than that may be in memory."""
    requests_in_flight: int = 500
    """Requests that were sent and of which nothing has come yet; later ones wait here. The relay
    knows the last ``sessions.repeats`` (1000) of them again: it should be well below that."""
    retry_at_most: float = 5.0
    """The longest pause between two tries to connect."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                msg = f"{name} must be more than 0"
                raise ValueError(msg)
