"""What is known of a request, stage by stage.

Each step of the pipeline returns the next stage, which has all facts of the stages before it. A
request that is refused keeps the stage that it reached: metrics, log and audit log are written from
that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from relay.auth.credentials import PresentedCredentials
from relay.edge.caller import Caller
from relay.errors import RelayError
from relay.model import Identity
from relay.routing.paths import Target
from relay.routing.table import MatchedRoute, PathParameters, Route


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it arrived."""

    request: web.BaseRequest
    request_id: str
    address: str
    """The client's address; a trusted proxy's word for it counts."""
    channels_only: bool
    """Whether it came to the port that serves kernels' channels only."""

    def facts(self) -> dict[str, Any]:
        """Return all fields by name, for the next stage."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @property
    def known_identity(self) -> Identity | None:
        """The caller's identity, where it was established."""
        return None

    @property
    def named_cluster(self) -> str:
        """The configured cluster that the path names, whether or not the caller may use it."""
        return ""

    @property
    def admitted_cluster(self) -> str:
        """The cluster, once the caller is known to have any right there."""
        return ""

    @property
    def matched_route(self) -> MatchedRoute | None:
        """The route, where one was found."""
        return None


class ParsedRequest(RequestContext, frozen=True, kw_only=True):
    """A request whose head and target are well-formed, and whose origin may send it."""

    target: Target
    """Below `prefix`."""
    prefix: str
    """The edge's base path, and the path token if there is one: what URLs in answers begin with."""
    path_token: str | None


class IdentifiedRequest(ParsedRequest, frozen=True, kw_only=True):
    """A request whose caller is known."""

    credentials: PresentedCredentials
    identity: Identity

    @property
    def known_identity(self) -> Identity:
        """The caller's identity."""
        return self.identity


class AddressedRequest(IdentifiedRequest, frozen=True, kw_only=True):
    """A request for a cluster that is configured. Its `target` is below the cluster."""

    cluster: str

    @property
    def named_cluster(self) -> str:
        """The cluster."""
        return self.cluster


class AdmittedRequest(AddressedRequest, frozen=True, kw_only=True):
    """A request whose caller has rights on the cluster, so may know of it."""

    @property
    def admitted_cluster(self) -> str:
        """The cluster."""
        return self.cluster


class RoutedRequest(AdmittedRequest, frozen=True, kw_only=True):
    """A request that the cluster's agents understand."""

    matched: MatchedRoute

    @property
    def route(self) -> Route:
        """What is asked for."""
        return self.matched.route

    @property
    def parameters(self) -> PathParameters:
        """What the path names."""
        return self.matched.parameters

    @property
    def matched_route(self) -> MatchedRoute:
        """The route."""
        return self.matched


class AuthorizedRequest(RoutedRequest, frozen=True, kw_only=True):
    """A request that its caller may send."""

    caller: Caller

    @property
    def log_fields(self) -> dict[str, object]:
        """The fields that log events about it have."""
        return {
            "cluster": self.cluster,
            "kind": self.route.name,
            "kernel_id": self.parameters.kernel_id or None,
            "principal": str(self.identity.principal),
        }


class Outcome(NamedTuple):
    """What became of a request."""

    response: web.StreamResponse
    reason: str = ""
    """Why it was refused, as its client reads it."""
    revoked: RelayError | None = None
    """Why the relay ended what was open: its caller's credential or rights are gone."""


class EarlyResponse(Exception):
    """Ends the pipeline: the response is known without the steps that are left."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response
