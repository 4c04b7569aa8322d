"""What a method on a path below ``/<cluster>`` asks for.

One table for edge and agent: the edge authorises the very request that the agent performs.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

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
    action: str
    """The value of the ``auth.policy.Action`` that it takes."""
    kernel_id: str | None = None
    name: str | None = None
    """The kernelspec's name."""
    file: tuple[str, ...] = ()
    """The segments of a resource's path below its kernelspec's folder."""
    session_id: str | None = None
    """A Jupyter session's id."""


_Methods = dict[str, tuple[Kind, str]]


class _Place(NamedTuple):
    methods: _Methods
    kernel_id: str | None = None
    name: str | None = None
    file: tuple[str, ...] = ()
    session_id: str | None = None


def _get(kind: Kind, action: str) -> _Methods:
    return {"GET": (kind, action), "HEAD": (kind, action)}


_VERSION = _get(Kind.VERSION, "list")
_STATUS = _get(Kind.STATUS, "list")
_ME = _get(Kind.ME, "list")
_KERNELS = {**_get(Kind.KERNELS, "list"), "POST": (Kind.START, "start")}
_KERNEL = {**_get(Kind.KERNEL, "view"), "DELETE": (Kind.STOP, "stop")}
_KERNELSPECS = _get(Kind.KERNELSPECS, "list")
_KERNELSPEC = _get(Kind.KERNELSPEC, "list")
_RESOURCE = _get(Kind.RESOURCE, "list")
_SESSIONS = {**_get(Kind.SESSIONS, "list"), "POST": (Kind.NEW_SESSION, "start")}
_SESSION = {
    **_get(Kind.SESSION, "view"),
    # A session that is given another kernel starts one, and ends the one it had.
    "PATCH": (Kind.CHANGE_SESSION, "start"),
    "DELETE": (Kind.END_SESSION, "stop"),
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
    "interrupt": {"POST": (Kind.INTERRUPT, "interrupt")},
    # What the kernel holds in memory is gone after a restart, as after a stop.
    "restart": {"POST": (Kind.RESTART, "stop")},
    "channels": {"GET": (Kind.CHANNELS, "use")},
    # What it has said; nothing can be asked of it here.
    "messages": _get(Kind.MESSAGES, "view"),
}


def match(method: str, segments: tuple[str, ...]) -> Route:
    """Return what ``method`` asks for at ``segments``, the decoded path after the cluster.

    Methods are compared exactly (RFC 9110 §9.1). Raises ``NotFound`` for a path that nobody could
    have, a malformed kernel id or kernelspec name included, and ``MethodNotAllowed``.
    """
    place = _find(segments)
    if method not in place.methods:
        raise MethodNotAllowed(f"this path takes {', '.join(place.methods)}")
    kind, action = place.methods[method]
    return Route(kind, action, place.kernel_id, place.name, place.file, place.session_id)


def allowed_methods(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that ``match`` takes here, for the ``Allow`` of a 405 (RFC 9110 §15.5.6).

    Raises ``NotFound`` as ``match`` does.
    """
    return tuple(_find(segments).methods)


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


def _find(segments: tuple[str, ...]) -> _Place:
    place = _Place(_FIXED[segments]) if segments in _FIXED else None
    match segments:
        case ("api", "sessions", session_id) if is_kernel_id(session_id):
            # Session ids look like kernel ids.
            place = _Place(_SESSION, session_id=session_id)
        case ("api", "kernels", kernel_id, *rest) if is_kernel_id(kernel_id):
            place = _on_kernel(kernel_id, tuple(rest))
        case ("api", "kernelspecs", name) if is_kernelspec_name(name):
            place = _Place(_KERNELSPEC, name=name)
        case ("kernelspecs", name, *file) if is_kernelspec_name(name) and _is_file(file):
            place = _Place(_RESOURCE, name=name, file=tuple(file))
    if place is None:
        raise NotFound("no such resource")
    return place


def _on_kernel(kernel_id: str, rest: tuple[str, ...]) -> _Place | None:
    if not rest:
        return _Place(_KERNEL, kernel_id)
    methods = _ON_KERNEL.get(rest[0]) if len(rest) == 1 else None
    return None if methods is None else _Place(methods, kernel_id)


def _is_file(segments: list[str]) -> bool:
    """Tell whether ``segments`` name something below a folder, whoever decoded them."""
    return bool(segments) and not any(
        segment in {"", ".", ".."} or "/" in segment or "\\" in segment or "\0" in segment
        for segment in segments
    )
