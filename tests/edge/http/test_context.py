from __future__ import annotations

from relay.edge.http.context import AdmittedRequest, IdentifiedRequest, ParsedRequest
from tests.edge.http.contexts import ALICE, addressed, authorized, received

KERNEL = "0a0a0a0a-0000-4000-8000-000000000000"


async def test_each_stage_knows_what_the_stages_before_it_knew() -> None:
    last = authorized("GET", f"/api/kernels/{KERNEL}")
    facts = last.facts()
    for stage in (ParsedRequest, IdentifiedRequest, AdmittedRequest):
        again = stage(**{name: facts[name] for name in stage.__struct_fields__})
        assert again.facts().items() <= facts.items()


async def test_a_stage_tells_what_is_certain_and_no_more() -> None:
    context = received()
    assert context.known_identity is None
    assert (context.named_cluster, context.admitted_cluster) == ("", "")
    assert context.matched_route is None
    stranger = addressed("beta")
    assert stranger.known_identity == ALICE
    # The audit log may name it, metrics and answers may not.
    assert (stranger.named_cluster, stranger.admitted_cluster) == ("beta", "")
    assert stranger.matched_route is None
    admitted = AdmittedRequest(**stranger.facts())
    assert (admitted.named_cluster, admitted.admitted_cluster) == ("beta", "beta")
    last = authorized("GET", f"/api/kernels/{KERNEL}")
    assert last.matched_route is last.matched
    assert last.route.name == "kernel"
    assert last.parameters.kernel_id == KERNEL


async def test_what_the_log_has_of_a_request() -> None:
    assert authorized("GET", f"/api/kernels/{KERNEL}").log_fields == {
        "cluster": "alpha",
        "kind": "kernel",
        "kernel_id": KERNEL,
        "principal": "token:alice",
    }
    assert authorized("GET", "/api/kernels").log_fields["kernel_id"] is None
