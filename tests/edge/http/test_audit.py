from __future__ import annotations

from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from relay.auth.audit import AuditEvent, AuditNote
from relay.config import AuditSettings
from relay.edge.http.audit import AuditedRequest, AuditTrail
from relay.errors import AuditFailed, Unauthorized
from relay.http import json_response
from relay.model import Identity, Principal
from relay.routing.routes import match

NOW = 1_800_000_000.0
ALICE = Identity(principal=Principal("token", "alice"), via="token", credential="abc")
KERNEL = {"id": "k-1", "name": "python3"}


class Parent:
    """Takes notes, and can write them or not."""

    def __init__(self) -> None:
        self.works = True
        self.notes: list[AuditNote] = []
        self.asked = 0

    async def tell(self, data: bytes) -> bool:
        self.asked += 1
        if data:
            self.notes.append(msgspec.msgpack.decode(data, type=AuditNote))
        return self.works


@pytest.fixture
def parent() -> Parent:
    return Parent()


def audit_of(parent: Parent, **settings: Any) -> AuditTrail:
    return AuditTrail(AuditSettings(**{"file": "a", **settings}), parent.tell, clock=lambda: NOW)


def asked(method: str = "GET", *segments: str, identity: Identity | None = ALICE) -> AuditedRequest:
    made = AuditedRequest(make_mocked_request(method, "/"), "r1", "192.0.2.1")
    made.identity = identity
    if segments:
        made.wanted = made.cluster = "alpha"
        made.route = match(method, segments)
    return made


async def test_a_start_names_the_kernel_that_it_made(parent: Parent) -> None:
    start = asked("POST", "api", "kernels")
    await audit_of(parent).answered(start, 201, json_response(KERNEL, 201))
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
    start = asked("POST", "api", "sessions")
    answer = json_response({"id": "s-1", "kernel": KERNEL, "path": "a"}, 201)
    await audit_of(parent).answered(start, 201, answer)
    (note,) = parent.notes
    assert (note.event, note.session_id) == (AuditEvent.SESSION_STARTED, "s-1")
    assert (note.kernel_id, note.kernelspec) == ("k-1", "python3")


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"message": "no"}', b'{"id": 1}'])
async def test_a_start_that_failed_names_none(parent: Parent, body: bytes) -> None:
    start = asked("POST", "api", "kernels")
    start.reason = "the kernel did not come up"
    await audit_of(parent).answered(start, 500, web.Response(body=body, status=500))
    (note,) = parent.notes
    assert (note.event, note.kernel_id, note.reason) == (AuditEvent.FAILED, "", start.reason)


async def test_an_unforeseen_end_is_noted_too(parent: Parent) -> None:
    await audit_of(parent).answered(asked("POST", "api", "kernels"), 500, None)
    assert [note.event for note in parent.notes] == [AuditEvent.FAILED]


async def test_a_grant_names_whom_it_is_for(parent: Parent) -> None:
    kernel = "a-b-c-d-e"
    grant = asked("PUT", "api", "kernels", kernel, "grants", "token:bob")
    await audit_of(parent).answered(grant, 204, web.Response(status=204))
    (note,) = parent.notes
    assert (note.event, note.kernel_id, note.user) == (AuditEvent.GRANTED, kernel, "token:bob")


async def test_who_only_reads_leaves_no_note(parent: Parent) -> None:
    await audit_of(parent).answered(asked("GET", "api", "kernels"), 200, json_response([]))
    assert parent.asked == 0


async def test_a_refused_login_has_no_name(parent: Parent) -> None:
    await audit_of(parent).answered(asked(identity=None), 401, None)
    (note,) = parent.notes
    assert (note.event, note.principal, note.cluster) == (AuditEvent.LOGIN_REFUSED, "", "")


async def test_another_ones_cluster_is_named_as_far_as_it_exists(parent: Parent) -> None:
    stranger = asked()
    stranger.wanted = "beta"
    await audit_of(parent).answered(stranger, 404, None)
    (note,) = parent.notes
    assert (note.event, note.cluster) == (AuditEvent.REFUSED, "beta")


async def test_channels_are_noted_when_they_open_and_not_again(parent: Parent) -> None:
    channels = asked("GET", "api", "kernels", "a-b-c-d-e", "channels")
    audit = audit_of(parent)
    await audit.opened(channels)
    await audit.answered(channels, 101, web.Response(status=101))
    assert [note.event for note in parent.notes] == [AuditEvent.CHANNELS_OPENED]
    channels.ended = Unauthorized("the token was revoked")
    await audit.answered(channels, 101, web.Response(status=101))
    note = parent.notes[-1]
    assert (note.event, note.status) == (AuditEvent.CHANNELS_ENDED, 4401)
    assert note.reason == "the token was revoked"


async def test_no_file_no_notes(parent: Parent) -> None:
    parent.works = False
    audit = audit_of(parent, file=None)
    await audit.answered(asked(identity=None), 401, None)
    await audit.opened(asked("GET", "api", "kernels", "a-b-c-d-e", "channels"))
    assert await audit.works()
    assert parent.asked == 0


@pytest.mark.parametrize("required", [False, True])
async def test_what_needs_a_line_needs_a_log_where_it_is_required(
    parent: Parent, required: bool
) -> None:
    parent.works = False
    audit = audit_of(parent, required=required)
    assert not await audit.works()
    start = match("POST", ("api", "kernels"))
    channels = asked("GET", "api", "kernels", "a-b-c-d-e", "channels")
    await audit.require(match("GET", ("api", "kernels")))
    if required:
        with pytest.raises(AuditFailed):
            await audit.require(start)
        with pytest.raises(AuditFailed):
            await audit.opened(channels)
    else:
        await audit.require(start)
        await audit.opened(channels)
    parent.works = True
    await audit.require(start)
    await audit.opened(channels)


async def test_nobody_is_answered_without_a_parent() -> None:
    async def tell(_: bytes) -> bool:
        raise ConnectionError

    audit = AuditTrail(AuditSettings(file="a"), tell)
    with pytest.raises(ConnectionError):
        await audit.answered(asked(identity=None), 401, None)


async def test_a_long_reason_fits(parent: Parent) -> None:
    refused = asked(identity=None)
    refused.reason = "x" * 1_000_000 + "\n"
    await audit_of(parent).answered(refused, 401, None)
    assert len(parent.notes[0].reason) == 256
