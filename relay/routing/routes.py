"""What a method on a path below ``/<cluster>`` asks for.

One table for edge and agent: the edge authorises the very request that the agent performs.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple, TypedDict

from relay.errors import MethodNotAllowed, NotFound

MAX_NAME = 128
"""Longest kernelspec name, in characters."""

_MAX_KERNEL_ID = 64
_KERNEL_ID = re.compile(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+){4}")
_SPEC_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Kind(enum.StrEnum):
    """Everything a cluster can be asked for; also the route's label in metrics and logs."""

    VERSION = "version"
    STATUS = "status"
    ME = "me"
    KERNELS = "kernels"
    START = "start"
    KERNEL = "kernel"
    STOP = "stop"
    INTERRUPT = "interrupt"
    RESTART = "restart"
    CHANNELS = "channels"
    MESSAGES = "messages"
    GRANTS = "grants"
    GRANT = "grant"
    REVOKE = "revoke"
    KERNELSPECS = "kernelspecs"
    KERNELSPEC = "kernelspec"
    RESOURCE = "resource"
    SESSIONS = "sessions"
    NEW_SESSION = "new-session"
    SESSION = "session"
    CHANGE_SESSION = "change-session"
    END_SESSION = "end-session"


STARTING = frozenset({Kind.START, Kind.NEW_SESSION, Kind.CHANGE_SESSION})
"""What may start a kernel: the edge chooses its id, so that the request can be repeated."""


class Route(NamedTuple):
    """A request that makes sense; whether it may happen is for policy to say."""

    kind: Kind
    actions: frozenset[str]
    """Values of ``auth.policy.Action``, any one of which will do."""
    besides: frozenset[str] = frozenset()
    """Those that it does not take, but whose absence makes a difference to the answer."""
    kernel_id: str | None = None
    name: str | None = None
    """The kernelspec's name."""
    file: tuple[str, ...] = ()
    """The segments of a resource's path below its kernelspec's folder."""
    session_id: str | None = None
    """A Jupyter session's id."""
    user: str | None = None
    """To whom a kernel is granted, or is no longer."""


_Methods = dict[str, Route]

_SEEING = ("view", "use")
"""With one of these somebody may know of a kernel, and hear that something else is forbidden."""


def _route(kind: Kind, *actions: str, besides: tuple[str, ...] = ()) -> Route:
    return Route(kind, frozenset(actions), frozenset(besides))


def _get(kind: Kind, *actions: str, besides: tuple[str, ...] = ()) -> _Methods:
    return dict.fromkeys(("GET", "HEAD"), _route(kind, *actions, besides=besides))


_VERSION = _get(Kind.VERSION, "list")
_STATUS = _get(Kind.STATUS, "list")
# It says what else one may do.
_ME = _get(Kind.ME, "list", besides=("start", "use", "view", "interrupt", "stop"))
_KERNELS = {
    # What one may neither view nor use isn't there.
    **_get(Kind.KERNELS, "list", besides=_SEEING),
    "POST": _route(Kind.START, "start"),
}
_KERNEL = {
    **_get(Kind.KERNEL, *_SEEING),
    "DELETE": _route(Kind.STOP, "stop", besides=_SEEING),
}
# What one may not start isn't there either.
_KERNELSPECS = _get(Kind.KERNELSPECS, "list", besides=("start",))
_KERNELSPEC = _get(Kind.KERNELSPEC, "list", besides=("start",))
_RESOURCE = _get(Kind.RESOURCE, "list", besides=("start",))
_SESSIONS = {
    **_get(Kind.SESSIONS, "list", besides=_SEEING),
    "POST": _route(Kind.NEW_SESSION, "start", besides=_SEEING),
}
_SESSION = {
    **_get(Kind.SESSION, *_SEEING),
    # A session that is given another kernel starts one, and ends the one it had.
    "PATCH": _route(Kind.CHANGE_SESSION, "start", besides=(*_SEEING, "stop")),
    "DELETE": _route(Kind.END_SESSION, "stop", besides=_SEEING),
}
_FIXED: dict[tuple[str, ...], _Methods] = {
    ("api",): _VERSION,
    ("api", "status"): _STATUS,
    ("api", "me"): _ME,
    ("api", "kernels"): _KERNELS,
    ("api", "kernelspecs"): _KERNELSPECS,
    ("api", "sessions"): _SESSIONS,
}
_ON_KERNEL: dict[str, _Methods] = {
    "interrupt": {"POST": _route(Kind.INTERRUPT, "interrupt", besides=_SEEING)},
    # What the kernel holds in memory is gone after a restart, as after a stop.
    "restart": {"POST": _route(Kind.RESTART, "stop", besides=_SEEING)},
    # Who may only view hears what is printed, and is not listened to.
    "channels": {"GET": _route(Kind.CHANNELS, "use", "view")},
    # What it has said; nothing can be asked of it here.
    "messages": _get(Kind.MESSAGES, *_SEEING),
    # Whom else its owner lets in.
    "grants": _get(Kind.GRANTS, "use", besides=("view",)),
}
_GRANT: _Methods = {
    "PUT": _route(Kind.GRANT, "use", besides=("view",)),
    "DELETE": _route(Kind.REVOKE, "use", besides=("view",)),
}


def match(method: str, segments: tuple[str, ...]) -> Route:
    """Return what ``method`` asks for at ``segments``, the decoded path after the cluster.

    Methods are compared exactly (RFC 9110 §9.1). Raises ``NotFound`` for a path that nobody could
    have, a malformed kernel id or kernelspec name included, and ``MethodNotAllowed``.
    """
    methods, names = _find(segments)
    if method not in methods:
        raise MethodNotAllowed(f"this path takes {', '.join(methods)}")
    return methods[method]._replace(**names)


def allowed_methods(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that ``match`` takes here, for the ``Allow`` of a 405 (RFC 9110 §15.5.6).

    Raises ``NotFound`` as ``match`` does.
    """
    methods, _ = _find(segments)
    return tuple(methods)


def is_kernel_id(text: str) -> bool:
    r"""Tell whether ``text`` can be a kernel id: five ASCII ``\w+`` joined by hyphens, at most 64.

    Jupyter Server's own pattern, bounded; UUIDs are the usual case.
    """
    return len(text) <= _MAX_KERNEL_ID and _KERNEL_ID.fullmatch(text) is not None


def is_kernelspec_name(text: str) -> bool:
    """Tell whether ``text`` can name a kernelspec (jupyter_client's pattern, bounded)."""
    return (
        len(text) <= MAX_NAME and _SPEC_NAME.fullmatch(text) is not None and text.strip(".") != ""
    )


class _Names(TypedDict, total=False):
    """What a path names, for the `Route`."""

    kernel_id: str
    name: str
    file: tuple[str, ...]
    session_id: str
    user: str


def _find(segments: tuple[str, ...]) -> tuple[_Methods, _Names]:
    if segments in _FIXED:
        return _FIXED[segments], {}
    match segments:
        case ("api", "sessions", session_id) if is_kernel_id(session_id):
            # Session ids look like kernel ids.
            return _SESSION, {"session_id": session_id}
        case ("api", "kernels", kernel_id) if is_kernel_id(kernel_id):
            return _KERNEL, {"kernel_id": kernel_id}
        case ("api", "kernels", kernel_id, what) if is_kernel_id(kernel_id) and what in _ON_KERNEL:
            return _ON_KERNEL[what], {"kernel_id": kernel_id}
        case ("api", "kernels", kernel_id, "grants", user) if is_kernel_id(kernel_id) and user:
            return _GRANT, {"kernel_id": kernel_id, "user": user}
        case ("api", "kernelspecs", name) if is_kernelspec_name(name):
            return _KERNELSPEC, {"name": name}
        case ("kernelspecs", name, *file) if is_kernelspec_name(name) and _is_file(file):
            return _RESOURCE, {"name": name, "file": tuple(file)}
    raise NotFound("no such resource")


def _is_file(segments: list[str]) -> bool:
    """Tell whether ``segments`` name something below a folder, whoever decoded them."""
    return bool(segments) and not any(
        segment in {"", ".", ".."} or "/" in segment or "\\" in segment or "\0" in segment
        for segment in segments
    )
