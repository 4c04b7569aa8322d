"""Every error that a client can get, in one tree that shows which side is at fault.

RelayError
├── ClientError        the request is wrong
│   ├── BadRequest         400
│   ├── Unauthorized       401
│   ├── Forbidden          403
│   ├── NotFound           404
│   ├── MethodNotAllowed   405
│   ├── Conflict           409
│   ├── TooMany            403, as Jupyter's gateways answer when they are full
│   ├── RateLimited        429, with Retry-After
│   ├── TooSlow            408
│   ├── TooLarge           413, close code 1009
│   ├── UnsupportedMedia   415, for a compressed body
│   └── MalformedMessage   400, close code 1007
├── AuthenticatorUnavailable  503, close code 1012; the credential cannot be checked just now
├── NotReady           503; this process is starting or stopping
├── AgentError         the cluster's side is at fault
│   ├── AgentUnavailable   503, close code 1012; the agent may come back
│   │   └── OtherVersion   503; a part speaks, or has written, an unknown version
│   └── AgentTimeout       503, close code 1012
├── AuditFailed            503; the line that the audit log requires cannot be written
└── KernelError        the kernel is at fault
    ├── StartFailed        500
    │   └── DiskFull       507; the kernel's files cannot be written
    └── BadKernelMessage   only in the holder's log

``message`` is written for the client and safe to show: it holds no path, token or traceback.
"""

from __future__ import annotations

from typing import ClassVar


class RelayError(Exception):
    """Base class of the tree; ``message`` is safe to show to a client."""

    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    reason: ClassVar[str] = "Internal error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds after which a new try makes sense; sent as ``Retry-After``."""


class ClientError(RelayError):
    """The request is wrong; repeating it unchanged does not help."""

    http_status = 400
    close_code = 1008
    reason = "Bad request"


class BadRequest(ClientError):
    """The request cannot be understood."""


class Unauthorized(ClientError):
    """The request has no credential, or an invalid one."""

    http_status = 401
    close_code = 4401
    reason = "Unauthorized"


class Forbidden(ClientError):
    """The client is authenticated, but not allowed to do this."""

    http_status = 403
    close_code = 4403
    reason = "Forbidden"


class NotFound(ClientError):
    """The resource does not exist, or the client may not know of it."""

    http_status = 404
    close_code = 4404
    reason = "Not found"


class MethodNotAllowed(ClientError):
    """The path exists, but does not take this method."""

    http_status = 405
    reason = "Method not allowed"


class Conflict(ClientError):
    """The resource exists already, or its state excludes the request."""

    http_status = 409
    reason = "Conflict"


class TooMany(ClientError):
    """A limit on a number was reached; the message names the setting.

    The status is 403, not 429: clients repeat a request at once after a 429, and waiting makes no
    room here.
    """

    http_status = 403
    reason = "Limit reached"


class RateLimited(ClientError):
    """A limit on a rate was reached; the message names the setting, ``retry_after`` the end."""

    http_status = 429
    reason = "Too many requests"


class TooSlow(ClientError):
    """A request took too long to arrive; the message names the setting."""

    http_status = 408
    reason = "Request timeout"


class TooLarge(ClientError):
    """A limit on a size was exceeded; the message names the setting."""

    http_status = 413
    close_code = 1009
    reason = "Too large"


class UnsupportedMedia(ClientError):
    """The body has a content coding that is not supported."""

    http_status = 415
    reason = "Unsupported media type"


class MalformedMessage(ClientError):
    """A WebSocket message is not a Jupyter message."""

    close_code = 1007
    reason = "Malformed message"


class AuthenticatorUnavailable(RelayError):
    """The authenticator cannot check the credential just now; the credential may be valid."""

    http_status = 503
    close_code = 1012
    reason = "Authentication unavailable"


class NotReady(RelayError):
    """The process does not accept requests just now; another one may."""

    http_status = 503
    close_code = 1012
    reason = "Not ready"


class AgentError(RelayError):
    """The cluster's side is at fault, not the client."""

    http_status = 503
    close_code = 1012
    reason = "Cluster unavailable"


class AgentUnavailable(AgentError):
    """No agent of the cluster responds just now; one may come back."""


class OtherVersion(AgentUnavailable):
    """One part of the relay does not know the version of another, or of what it has written."""

    reason = "Other version"


class AgentTimeout(AgentError):
    """An agent took longer than the deadline.

    The status is 503: JupyterLab takes any other error on a kernel for the kernel's death.
    """

    reason = "Cluster timeout"


class AuditFailed(RelayError):
    """The required line of the audit log cannot be written, so the request is refused."""

    http_status = 503
    close_code = 1012
    reason = "Audit log unavailable"


class KernelError(RelayError):
    """The kernel is at fault."""

    reason = "Kernel error"


class StartFailed(KernelError):
    """The kernel did not start."""

    reason = "Kernel start failed"


class DiskFull(StartFailed):
    """The kernel's files cannot be written, so it could not be found again after a start."""

    http_status = 507
    reason = "Disk full"


class BadKernelMessage(KernelError):
    """A ZMQ multipart that is not a signed Jupyter message; it is logged, counted and dropped."""
