"""What a caller may do: on a cluster, on a route, and for as long as something is open."""

from __future__ import annotations

from functools import partial

from relay.auth.policy import Action, Policy
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.caller import Caller
from relay.edge.http.context import (
    AddressedRequest,
    AdmittedRequest,
    AuthorizedRequest,
    RoutedRequest,
)
from relay.model import Identity
from relay.routing.table import Route


class Authorization:
    """Applies the policy, which may be replaced at any time.

    ``max_kernels`` is how many kernels each user may have on a cluster; ``None`` for no limit.
    """

    def __init__(self, policy: Policy, max_kernels: int | None) -> None:
        self.policy = policy
        self._max_kernels = max_kernels

    def admit(self, context: AddressedRequest) -> AdmittedRequest:
        """Check that the caller has rights on the cluster. Raises `NotFound` otherwise."""
        self.policy.admit(context.identity, context.cluster)
        return AdmittedRequest(**context.facts())

    def authorize(self, context: RoutedRequest) -> AuthorizedRequest:
        """Check that the caller may use the route. Raises `NotFound` and `Forbidden`.

        The policy of this moment counts: it may have been replaced since the caller was admitted.
        """
        caller = self._caller(context.identity, cluster=context.cluster, route=context.route)
        return AuthorizedRequest(**context.facts(), caller=caller)

    def stream(self, context: AuthorizedRequest) -> AuthorizedStream:
        """Return what stays open for a request, to be authorised again by the policy of then."""
        authorize = partial(self._caller, cluster=context.cluster, route=context.route)
        log_fields = context.log_fields | {
            "request_id": context.request_id,
            "token_id": context.identity.credential,
        }
        return AuthorizedStream(context.identity, authorize, context.caller, log_fields)

    def _caller(self, identity: Identity, *, cluster: str, route: Route) -> Caller:
        """Return the caller as agents are told of it. Raises `NotFound` and `Forbidden`."""
        rights = self.policy.admit(identity, cluster)
        actions = frozenset(map(Action, route.actions))
        rights.require(actions)
        relevant = actions | frozenset(map(Action, route.optional_actions)) | {Action.ADMIN}
        rights = rights.restricted_to(relevant)
        return Caller(identity.principal, rights, max_kernels=self._max_kernels)
