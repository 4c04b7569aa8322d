"""Every error a user can meet, in one tree that says who is to blame.

RelayError
├── ClientError        the request is wrong
│   ├── BadRequest         400
│   ├── Unauthorized       401
│   ├── Forbidden          403
│   ├── NotFound           404
│   ├── MethodNotAllowed   405
│   ├── Conflict           409
│   ├── TooMany            403: Jupyter's gateways answer a full house so
│   ├── RateLimited        429, with Retry-After
│   ├── TooSlow            408
│   ├── TooLarge           413, close code 1009
│   ├── UnsupportedMedia   415: a compressed body
│   └── MalformedMessage   400, close code 1007
├── AuthenticatorUnavailable  503, close code 1012: nobody can tell just now whose it is
├── NotReady           503: this process begins, or ends
├── AgentError         the cluster's side is wrong
│   ├── AgentUnavailable   503, close code 1012; may come back
│   │   └── OtherVersion   503: it speaks, or has written, a version that is not known here
│   └── AgentTimeout       503, close code 1012
├── AuditFailed            503: what must leave a line in the audit log cannot
└── KernelError        the kernel is wrong
    ├── StartFailed        500
    │   └── DiskFull       507: what is to be started cannot be noted
    └── BadKernelMessage   never leaves the holder's log

``message`` is written for the client and safe to show: no path, no token, no trace.
"""

from __future__ import annotations

from typing import ClassVar


class RelayError(Exception):
    """Base of the tree. ``message`` is safe to show to a client."""

    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    reason: ClassVar[str] = "Internal error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds after which trying again makes sense, sent as ``Retry-After``."""


class ClientError(RelayError):
    """The request is wrong; sending it again unchanged will not help."""

    http_status = 400
    close_code = 1008
    reason = "Bad request"


class BadRequest(ClientError):
    """The request cannot be understood."""


class Unauthorized(ClientError):
    """No credential, or one that proves nothing."""

    http_status = 401
    close_code = 4401
    reason = "Unauthorized"


class Forbidden(ClientError):
    """Known, but not allowed."""

    http_status = 403
    close_code = 4403
    reason = "Forbidden"


class NotFound(ClientError):
    """No such thing, or none that this principal may know of."""

    http_status = 404
    close_code = 4404
    reason = "Not found"


class MethodNotAllowed(ClientError):
    """The path exists, the method on it does not."""

    http_status = 405
    reason = "Method not allowed"


class Conflict(ClientError):
    """The thing exists already, or is in a state that excludes the request."""

    http_status = 409
    reason = "Conflict"


class TooMany(ClientError):
    """A limit on numbers was hit; the message names the setting.

    403, not 429: clients repeat a 429 at once, and room is not made by waiting.
    """

    http_status = 403
    reason = "Limit reached"


class RateLimited(ClientError):
    """A limit on how often was hit; the message names the setting, ``retry_after`` the end."""

    http_status = 429
    reason = "Too many requests"


class TooSlow(ClientError):
    """A request took longer to arrive than it may; the message names the setting."""

    http_status = 408
    reason = "Request timeout"


class TooLarge(ClientError):
    """A limit on size was hit; the message names the setting."""

    http_status = 413
    close_code = 1009
    reason = "Too large"


class UnsupportedMedia(ClientError):
    """The body is coded in a way that is not spoken here."""

    http_status = 415
    reason = "Unsupported media type"


class MalformedMessage(ClientError):
    """A WebSocket message that is not a Jupyter message."""

    close_code = 1007
    reason = "Malformed message"


class AuthenticatorUnavailable(RelayError):
    """Whoever could tell whose a credential is cannot just now: it may well be a good one."""

    http_status = 503
    close_code = 1012
    reason = "Authentication unavailable"


class NotReady(RelayError):
    """The process takes nobody in just now; another one may."""

    http_status = 503
    close_code = 1012
    reason = "Not ready"


class AgentError(RelayError):
    """The cluster's side is at fault, not the client."""

    http_status = 503
    close_code = 1012
    reason = "Cluster unavailable"


class AgentUnavailable(AgentError):
    """No agent of the cluster answers just now; it may come back."""


class OtherVersion(AgentUnavailable):
    """One part of the relay does not know the version of another, or of what it has written."""

    reason = "Other version"


class AgentTimeout(AgentError):
    """An agent took longer than the deadline.

    Still a 503: JupyterLab takes any other error on a kernel for that kernel's death.
    """

    reason = "Cluster timeout"


class AuditFailed(RelayError):
    """What must leave a line in the audit log cannot, and so does not happen."""

    http_status = 503
    close_code = 1012
    reason = "Audit log unavailable"


class KernelError(RelayError):
    """The kernel is at fault."""

    reason = "Kernel error"


class StartFailed(KernelError):
    """The kernel did not come up."""

    reason = "Kernel start failed"


class DiskFull(StartFailed):
    """The state folder cannot be written, so that nobody would find what is started."""

    http_status = 507
    reason = "Disk full"


class BadKernelMessage(KernelError):
    """A ZMQ multipart that is not a signed Jupyter message; logged, counted and dropped."""
