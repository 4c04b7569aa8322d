"""What can go wrong for a script, beside `relay.errors`, and which answer means what.

RelayError
├── ClientError
│   └── Replaced           another client took the session over
├── AgentError
│   └── AgentUnavailable
│       ├── ConnectionLost  come again; never leaves the client
│       └── GaveUp          came again for long enough
└── KernelError
    ├── KernelGone         the kernel ended, or died for good
    └── KernelRestarted    what was asked of the process before stays unanswered
"""

from __future__ import annotations

from typing import Final

from relay import errors
from relay.bridge.session import REPLACED
from relay.errors import AgentUnavailable, ClientError, KernelError, NotFound, RelayError


class Replaced(ClientError):
    """A newer connection with the same ``session_id`` has the session now."""

    reason = "Session taken over"


class ConnectionLost(AgentUnavailable):
    """The way to the kernel broke; coming again may help."""


class GaveUp(AgentUnavailable):
    """The relay was away for longer than ``give_up_after``."""

    reason = "Gave up"


class KernelGone(KernelError):
    """The kernel has ended, or its process died once too often."""

    reason = "Kernel gone"


class KernelRestarted(KernelError):
    """The kernel was restarted before it answered: the request has run, in part, or not at all."""

    reason = "Kernel restarted"


_SHOWN: Final = (
    errors.BadRequest,
    errors.Unauthorized,
    errors.Forbidden,
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.Conflict,
    errors.TooMany,
    errors.TooLarge,
    errors.AgentUnavailable,
    errors.AgentTimeout,
    errors.RelayError,
    errors.KernelError,
    errors.StartFailed,
)
_BY_REASON: Final = {(kind.http_status, kind.reason): kind for kind in _SHOWN}
# The first of a status wins: the plain one. What is not known otherwise is some server's trouble.
_BY_STATUS: Final = {kind.http_status: kind for kind in reversed(_SHOWN)}
_COME_AGAIN: Final = frozenset({502, 503, 504})
"""What proxies on the way say too when there is nobody behind them."""
_CLIENT_ERRORS: Final = range(400, 500)
_FINAL: Final = {
    kind.close_code: kind
    for kind in (
        errors.ClientError,
        errors.TooLarge,
        errors.MalformedMessage,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
    )
}


def of_answer(
    status: int, message: str, *, reason: str = "", retry_after: int | None = None
) -> RelayError:
    """The error that an HTTP answer means; an `AgentError` where coming again may help."""
    kind = _BY_REASON.get((status, reason)) or _BY_STATUS.get(status)
    if kind is None or (status in _COME_AGAIN and not issubclass(kind, errors.AgentError)):
        fallback = ClientError if status in _CLIENT_ERRORS else RelayError
        kind = AgentUnavailable if status in _COME_AGAIN else fallback
    return kind(message or f"The relay answered {status}.", retry_after=retry_after)


def of_close(code: int | None, reason: str) -> RelayError:
    """The error that the end of a WebSocket means; `ConnectionLost` where coming again may help.

    So do 1000 and 1011: the next handshake says whether the kernel is gone.
    """
    if (code, reason) == REPLACED:
        return Replaced("Another connection has this session now.")
    kind = _FINAL.get(code) if code is not None else None
    if kind is None:
        return ConnectionLost(f"The connection ended ({code}: {reason or 'no reason given'}).")
    return kind(reason or f"The relay closed the connection ({code}).")


def when_connected(error: RelayError) -> RelayError:
    """What a handshake's error means for a kernel that was there before."""
    return KernelGone("The kernel is gone.") if isinstance(error, NotFound) else error
