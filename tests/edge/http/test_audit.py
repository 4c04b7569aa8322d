from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from relay.auth.audit import AuditEvent, AuditNote
from relay.config import AuditSettings
from relay.edge.http.audit import AuditTrail
from relay.edge.http.context import AuthorizedRequest, Outcome, RequestContext
from relay.errors import AuditFailed, Unauthorized
from relay.http import json_response
from relay.routing.routes import ROUTES
from relay.routing.table import Route, Scope
from tests.edge.http.contexts import ALICE, addressed, authorized, received

NOW = 1_800_000_000.0
KERNEL = {"id": "k-1", "name": "python3"}
SESSION = "1-2-3-4-5"


class Parent:
    """Takes notes, and can write them or not."""

    def __init__(self) -> None:
        self.works = True
        self.notes: list[AuditNote] = []
        self.asked = 0

    async def write(self, note: AuditNote | None) -> bool:
        self.asked += 1
        if note is not None:
            self.notes.append(note)
        return self.works


@pytest.fixture
def parent() -> Parent:
    return Parent()


def audit_of(parent: Parent, **settings: Any) -> AuditTrail:
    return AuditTrail(AuditSettings(**{"file": "a", **settings}), parent.write, clock=lambda: NOW)


def route(name: str) -> Route:
    return next(route for route in ROUTES.routes if route.name == name)


def asked(method: str, *segments: str) -> AuthorizedRequest:
    return authorized(method, "/" + "/".join(segments))


async def answered(parent: Parent, context: RequestContext, response: web.StreamResponse) -> None:
    await audit_of(parent).answered(context, Outcome(response))


def test_events_of_routes_are_those_of_the_audit_log() -> None:
    acts = {route.name: route.audit for route in ROUTES.routes if route.audit}
    assert set(acts.values()) <= set(AuditEvent)
    # One event says which route it was.
    assert len(set(acts.values())) == len(acts)


def test_every_route_that_changes_something_leaves_a_line() -> None:
    silent = {route.name for route in ROUTES.of(Scope.CLUSTER) if not route.audit}
    assert silent == {
        "version",
        "status",
        "me",
        "kernels",
        "kernel",
        "messages",
        "grants",
        "kernelspecs",
        "kernelspec",
        "resource",
        "sessions",
        "session",
    }


async def test_a_start_names_the_kernel_that_it_made(parent: Parent) -> None:
    await answered(parent, asked("POST", "api", "kernels"), json_response(KERNEL, 201))
    (note,) = parent.notes
    assert note == AuditNote(
        time=NOW,
        event=AuditEvent.KERNEL_STARTED,
        principal="token:alice",
        via="token",
        credential="abc",
        address="192.0.2.1",
        method="POST",
        cluster="alpha",
        kind="start",
        kernel_id="k-1",
        kernelspec="python3",
        request_id="r1",
        status=201,
    )


async def test_a_session_names_its_kernel(parent: Parent) -> None:
    answer = json_response({"id": "s-1", "kernel": KERNEL, "path": "a"}, 201)
    await answered(parent, asked("POST", "api", "sessions"), answer)
    (note,) = parent.notes
    assert (note.event, note.session_id) == (AuditEvent.SESSION_STARTED, "s-1")
    assert (note.kernel_id, note.kernelspec) == ("k-1", "python3")


async def test_a_session_that_changes_names_itself_and_its_kernel(parent: Parent) -> None:
    answer = json_response({"id": SESSION, "name": "", "kernel": KERNEL}, 200)
    await answered(parent, asked("PATCH", "api", "sessions", SESSION), answer)
    (note,) = parent.notes
    assert (note.event, note.session_id) == (AuditEvent.SESSION_CHANGED, SESSION)
    assert (note.kernel_id, note.kernelspec) == ("k-1", "python3")


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"message": "no"}', b'{"id": 1}'])
async def test_a_start_that_failed_names_none(parent: Parent, body: bytes) -> None:
    why = "the kernel did not come up"
    outcome = Outcome(web.Response(body=body, status=500), reason=why)
    await audit_of(parent).answered(asked("POST", "api", "kernels"), outcome)
    (note,) = parent.notes
    assert (note.event, note.kernel_id, note.reason) == (AuditEvent.FAILED, "", why)


async def test_an_unforeseen_end_is_noted_too(parent: Parent) -> None:
    await audit_of(parent).failed(asked("POST", "api", "kernels"))
    assert [(note.event, note.status) for note in parent.notes] == [(AuditEvent.FAILED, 500)]


async def test_a_grant_names_whom_it_is_for(parent: Parent) -> None:
    kernel = "a-b-c-d-e"
    grant = asked("PUT", "api", "kernels", kernel, "grants", "token:bob")
    await answered(parent, grant, web.Response(status=204))
    (note,) = parent.notes
    assert (note.event, note.kernel_id, note.user) == (AuditEvent.GRANTED, kernel, "token:bob")


async def test_who_only_reads_leaves_no_note(parent: Parent) -> None:
    await answered(parent, asked("GET", "api", "kernels"), json_response([]))
    assert parent.asked == 0


async def test_a_refused_login_has_no_name(parent: Parent) -> None:
    await answered(parent, received(), web.Response(status=401))
    (note,) = parent.notes
    assert (note.event, note.principal, note.cluster) == (AuditEvent.LOGIN_REFUSED, "", "")


async def test_another_ones_cluster_is_named_as_far_as_it_exists(parent: Parent) -> None:
    await answered(parent, addressed("beta"), web.Response(status=404))
    (note,) = parent.notes
    assert (note.event, note.cluster) == (AuditEvent.REFUSED, "beta")
    assert note.principal == str(ALICE.principal)


async def test_channels_are_noted_when_they_open_and_not_again(parent: Parent) -> None:
    channels = asked("GET", "api", "kernels", "a-b-c-d-e", "channels")
    audit = audit_of(parent)
    await audit.channels_opened(channels)
    await audit.answered(channels, Outcome(web.Response(status=101)))
    (note,) = parent.notes
    assert (note.event, note.status) == (AuditEvent.CHANNELS_OPENED, 101)
    revoked = Unauthorized("the token was revoked")
    await audit.answered(channels, Outcome(web.Response(status=101), revoked=revoked))
    note = parent.notes[-1]
    assert (note.event, note.status) == (AuditEvent.CHANNELS_ENDED, 4401)
    assert note.reason == "the token was revoked"


async def test_no_file_no_notes(parent: Parent) -> None:
    parent.works = False
    audit = audit_of(parent, file=None)
    await audit.answered(received(), Outcome(web.Response(status=401)))
    await audit.channels_opened(asked("GET", "api", "kernels", "a-b-c-d-e", "channels"))
    assert await audit.works()
    assert parent.asked == 0


@pytest.mark.parametrize("required", [False, True])
async def test_what_needs_a_line_needs_a_log_where_it_is_required(
    parent: Parent, required: bool
) -> None:
    parent.works = False
    audit = audit_of(parent, required=required)
    assert not await audit.works()
    channels = asked("GET", "api", "kernels", "a-b-c-d-e", "channels")
    await audit.require(route("kernels"))
    if required:
        with pytest.raises(AuditFailed):
            await audit.require(route("start"))
        with pytest.raises(AuditFailed):
            await audit.channels_opened(channels)
    else:
        await audit.require(route("start"))
        await audit.channels_opened(channels)
    parent.works = True
    await audit.require(route("start"))
    await audit.channels_opened(channels)


async def test_nobody_is_answered_without_a_parent() -> None:
    async def write(_: AuditNote | None) -> bool:
        raise ConnectionError

    audit = AuditTrail(AuditSettings(file="a"), write)
    with pytest.raises(ConnectionError):
        await audit.answered(received(), Outcome(web.Response(status=401)))


async def test_a_long_reason_fits(parent: Parent) -> None:
    refused = Outcome(web.Response(status=401), reason="x" * 1_000_000 + "\n")
    await audit_of(parent).answered(received(), refused)
    assert len(parent.notes[0].reason) == 256
