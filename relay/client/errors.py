"""Errors for scripts, beside `relay.errors`, and the errors that responses stand for.

RelayError
├── ClientError
│   └── Replaced           another client has taken over the session
├── AgentError
│   └── AgentUnavailable
│       ├── ConnectionLost  retried; never leaves the client
│       └── GaveUp          retried for long enough
└── KernelError
    ├── KernelGone         the kernel was shut down, or died for good
    └── KernelRestarted    requests to the previous process stay unanswered
"""

from __future__ import annotations

from typing import Final

from relay import errors
from relay.bridge.session import REPLACED
from relay.errors import AgentUnavailable, ClientError, KernelError, NotFound, RelayError


class Replaced(ClientError):
    """A newer connection with the same ``session_id`` has taken over the session."""

    reason = "Session taken over"


class ConnectionLost(AgentUnavailable):
    """The connection to the kernel was lost; reconnecting may help."""


class GaveUp(AgentUnavailable):
    """The relay was unavailable for longer than ``give_up_after``."""

    reason = "Gave up"


class KernelGone(KernelError):
    """The kernel was shut down, or its process died too often."""

    reason = "Kernel gone"


class KernelRestarted(KernelError):
    """The kernel was restarted before it answered: the code has run, in part, or not at all."""

    reason = "Kernel restarted"


_ERRORS: Final = (
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
_BY_REASON: Final = {(kind.http_status, kind.reason): kind for kind in _ERRORS}
# The first error with a status wins, which is the general one.
_BY_STATUS: Final = {kind.http_status: kind for kind in reversed(_ERRORS)}
_RETRYABLE: Final = frozenset({502, 503, 504})
"""Statuses that proxies send too, when the server behind them is unavailable."""
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


def from_response(
    status: int, message: str, *, reason: str = "", retry_after: int | None = None
) -> RelayError:
    """Return the error of an HTTP response; an `AgentError` where retrying may help."""
    kind = _BY_REASON.get((status, reason)) or _BY_STATUS.get(status)
    if kind is None or (status in _RETRYABLE and not issubclass(kind, errors.AgentError)):
        fallback = ClientError if status in _CLIENT_ERRORS else RelayError
        kind = AgentUnavailable if status in _RETRYABLE else fallback
    return kind(message or f"The relay responded with {status}.", retry_after=retry_after)


def from_close(code: int | None, reason: str) -> RelayError:
    """Return the error of a WebSocket's end; `ConnectionLost` where reconnecting may help.

    1000 and 1011 are retried too: the next handshake shows whether the kernel is gone.
    """
    if (code, reason) == REPLACED:
        return Replaced("Another connection has taken over this session.")
    kind = _FINAL.get(code) if code is not None else None
    if kind is None:
        return ConnectionLost(f"The connection ended ({code}: {reason or 'no reason given'}).")
    return kind(reason or f"The relay closed the connection ({code}).")


def when_connected(error: RelayError) -> RelayError:
    """Return the meaning of a handshake's error for a kernel that existed before."""
    return KernelGone("The kernel is gone.") if isinstance(error, NotFound) else error
