"""What agents are told of a caller, at first and as long as something is open."""

from __future__ import annotations

import pytest

from relay.auth.policy import Action, Policy, Rights, Rule
from relay.edge.http.authorization import Authorization
from relay.edge.http.context import AdmittedRequest, RoutedRequest
from relay.errors import Forbidden, NotFound
from relay.routing.routes import ROUTES
from relay.routing.table import Scope
from tests.edge.http.contexts import ALICE, addressed

K = "/api/kernels/0a0a0a0a-0000-4000-8000-000000000000"


def policy(*actions: Action, cluster: str = "alpha") -> Policy:
    clusters = frozenset({cluster})
    return Policy(
        [Rule(authenticator="token", clusters=clusters, actions=frozenset(actions))]
        if actions
        else []
    )


def routed(admitted: AdmittedRequest, method: str, path: str) -> RoutedRequest:
    segments = tuple(path[1:].split("/"))
    matched = ROUTES.match(Scope.CLUSTER, method, segments)
    return RoutedRequest(**admitted.facts(), matched=matched)


async def test_only_who_has_rights_on_a_cluster_is_admitted() -> None:
    authorization = Authorization(policy(Action.LIST), None)
    assert authorization.admit(addressed("alpha")).admitted_cluster == "alpha"
    with pytest.raises(NotFound, match="no such cluster"):
        authorization.admit(addressed("beta"))


async def test_rights_that_make_no_difference_are_left_out() -> None:
    authorization = Authorization(policy(*Action), 7)
    admitted = authorization.admit(addressed("alpha"))
    caller = authorization.authorize(routed(admitted, "POST", f"{K}/interrupt")).caller
    assert caller.principal == ALICE.principal
    assert caller.max_kernels == 7
    assert set(caller.rights.kernelspecs) == {"interrupt", "use", "view", "admin"}


async def test_without_the_route_s_action_other_rights_do_not_help() -> None:
    authorization = Authorization(policy(Action.LIST, Action.ADMIN), None)
    admitted = authorization.admit(addressed("alpha"))
    with pytest.raises(Forbidden, match="not allowed on this cluster: use or view"):
        authorization.authorize(routed(admitted, "GET", K))


async def test_what_is_open_follows_the_policy() -> None:
    authorization = Authorization(policy(Action.USE, Action.VIEW), None)
    request = routed(authorization.admit(addressed("alpha")), "GET", f"{K}/channels")
    stream = authorization.stream(authorization.authorize(request))
    assert stream.caller.rights == Rights({Action.USE: None, Action.VIEW: None})
    assert stream.log_fields["token_id"] == ALICE.credential
    authorization.policy = policy(Action.VIEW, Action.STOP)
    assert stream.reauthorize(ALICE) is None
    assert stream.caller.rights == Rights({Action.VIEW: None})
    for less in (policy(Action.LIST), policy(), policy(*Action, cluster="beta")):
        authorization.policy = less
        assert isinstance(stream.reauthorize(ALICE), Forbidden)
