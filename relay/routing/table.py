"""What a route is, and how a request's method and path lead to one.

`routing.routes` has the routes themselves. Methods are compared exactly (RFC 9110 §9.1), paths
segment by segment, decoded.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from relay.errors import MethodNotAllowed, NotFound
from relay.routing.clusters import is_cluster_name
from relay.routing.names import is_kernel_id, is_kernelspec_name

ANY_METHOD: Final = "*"


class Scope(enum.Enum):
    """Where a route's path begins, and so what it is about."""

    ROOT = enum.auto()
    """The edge itself, at the root of its ports whatever its ``base_url``, without credentials."""
    EDGE = enum.auto()
    """The edge itself, below its ``base_url``, without credentials."""
    ALL_CLUSTERS = enum.auto()
    """Every cluster that the caller may use, below ``base_url``."""
    CLUSTER = enum.auto()
    """One cluster, below ``base_url/<cluster>``: the edge forwards these, agents answer them."""


class Retry(enum.Enum):
    """Whether a request may be sent to an agent again after it may have arrived."""

    ONCE = enum.auto()
    """No: its effect may have happened, and would happen twice."""
    IDEMPOTENT = enum.auto()
    """Yes: twice has the effect of once."""
    START = enum.auto()
    """Yes: the edge chooses the new kernel's id, so a repeated start finds the kernel of the first.
    A client that starts a kernel also waits longer for an agent to come back."""


class TimeoutClass(enum.Enum):
    """The setting that bounds the time an agent has for its answer."""

    REQUEST = "request"
    """``upstream.request_timeout``."""
    START = "start"
    """``upstream.start_timeout``: kernels start or end."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request; whether a caller may send it is for the policy to decide."""

    name: str
    """Unique in its table; the route's label in metrics, logs and the audit log."""
    scope: Scope = Scope.CLUSTER
    method: str
    """`ANY_METHOD` takes every one. GET takes HEAD too, unless the route upgrades."""
    pattern: str
    """Segments between slashes; those in braces are fields of `PathParameters`. ``{file}``, which
    stands last, takes one segment or more."""
    actions: frozenset[str] = frozenset()
    """Values of ``auth.policy.Action``, any one of which opens the route."""
    optional_actions: frozenset[str] = frozenset()
    """Actions that the route does not require, but whose absence changes the answer."""
    retry: Retry = Retry.ONCE
    timeout: TimeoutClass = TimeoutClass.REQUEST
    query: tuple[str, ...] = ()
    """The query parameters that agents know; others are not forwarded."""
    streams: bool = False
    """The answer is a stream that lasts for as long as its reader wants it."""
    upgrades: bool = False
    """The request is a WebSocket's handshake."""
    links: bool = False
    """The answer contains URLs, which need the prefix that the client used."""
    audit: str = ""
    """The value of ``auth.audit.AuditEvent`` that a success is logged as; "" for none."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the route takes."""
        return ("GET", "HEAD") if self.method == "GET" and not self.upgrades else (self.method,)

    @property
    def starts_kernel(self) -> bool:
        """Whether it may start a kernel, whose id the edge chooses."""
        return self.retry is Retry.START


class PathParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a path names; empty where it names no such thing."""

    cluster: str = ""
    kernel_id: str = ""
    session_id: str = ""
    """A Jupyter session's id."""
    kernelspec: str = ""
    file: tuple[str, ...] = ()
    """The segments of a resource's path below its kernelspec's folder."""
    user: str = ""
    """The user whom a grant is for."""


class MatchedRoute(NamedTuple):
    """A request's route, and what its path names."""

    route: Route
    parameters: PathParameters


class RouteTable:
    """Routes by scope, path and method."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Raise ``ValueError`` for an unknown placeholder, and for a name or place used twice."""
        self.routes = tuple(routes)
        self._paths: dict[Scope, dict[str, _Path]] = {scope: {} for scope in Scope}
        for route in self.routes:
            paths = self._paths[route.scope]
            paths.setdefault(route.pattern, _Path(route.pattern)).add(route)
        if len({route.name for route in self.routes}) < len(self.routes):
            raise ValueError("two routes have one name")

    def of(self, *scopes: Scope) -> tuple[Route, ...]:
        """Return the routes of these scopes."""
        return tuple(route for route in self.routes if route.scope in scopes)

    def match(self, scope: Scope, method: str, segments: tuple[str, ...]) -> MatchedRoute:
        """Return the route of ``method`` on ``segments``, the path below the scope's prefix.

        Raises:
            NotFound: there is no such path, or a name in it is malformed.
            MethodNotAllowed: the path does not take the method.
        """
        found = self.find(scope, method, segments)
        if found is None:
            raise _no_such_resource()
        return found

    def find(self, scope: Scope, method: str, segments: tuple[str, ...]) -> MatchedRoute | None:
        """Return the same as `match`, or ``None`` where there is no such path.

        Raises:
            MethodNotAllowed: the path does not take the method.
        """
        for path in self._paths[scope].values():
            parameters = path.parse(segments)
            if parameters is not None:
                return MatchedRoute(path.route(method), parameters)
        return None

    def allowed_methods(self, scope: Scope, segments: tuple[str, ...]) -> tuple[str, ...]:
        """Return the methods of a path, for the ``Allow`` of a 405 (RFC 9110 §15.5.6).

        Raises:
            NotFound: there is no such path.
        """
        for path in self._paths[scope].values():
            if path.parse(segments) is not None:
                return tuple(path.routes)
        raise _no_such_resource()


class _Path:
    """One pattern and its routes by method."""

    def __init__(self, pattern: str) -> None:
        self._parts = tuple(pattern.split("/"))
        self.routes: dict[str, Route] = {}
        for part in self._parts:
            if part.startswith("{") and part not in _PLACEHOLDERS:
                raise ValueError(f"unknown placeholder {part}")

    def add(self, route: Route) -> None:
        for method in route.methods:
            if method in self.routes:
                raise ValueError(f"two routes take {method} on /{route.pattern}")
            self.routes[method] = route

    def route(self, method: str) -> Route:
        found = self.routes.get(method) or self.routes.get(ANY_METHOD)
        if found is None:
            raise MethodNotAllowed(f"this path takes {', '.join(self.routes)}")
        return found

    def parse(self, segments: tuple[str, ...]) -> PathParameters | None:
        values: tuple[Any, ...] = segments
        if self._parts[-1] == _FILE:
            last = len(self._parts) - 1
            values = (*segments[:last], segments[last:])
        if len(values) != len(self._parts):
            return None
        found: dict[str, Any] = {}
        for part, value in zip(self._parts, values, strict=True):
            is_valid = _PLACEHOLDERS.get(part)
            if is_valid is None:
                if part != value:
                    return None
            elif is_valid(value):
                found[part[1:-1]] = value
            else:
                return None
        return PathParameters(**found)


def _is_file(segments: tuple[str, ...]) -> bool:
    """Tell whether ``segments`` name something below a folder, even if they are decoded again."""
    return bool(segments) and not any(
        segment in {"", ".", ".."} or "/" in segment or "\\" in segment or "\0" in segment
        for segment in segments
    )


_FILE: Final = "{file}"
_PLACEHOLDERS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "{cluster}": is_cluster_name,
    "{kernel_id}": is_kernel_id,
    # Session ids look like kernel ids.
    "{session_id}": is_kernel_id,
    "{kernelspec}": is_kernelspec_name,
    _FILE: _is_file,
    # Its form depends on the caller's authenticator, which the agent knows.
    "{user}": bool,
}
"""What each placeholder takes."""


def _no_such_resource() -> NotFound:
    return NotFound("no such resource")
