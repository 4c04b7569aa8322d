from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from relay import pki
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket, TicketSigner, TicketVerifier
from relay.bridge.control import Attach, Close
from relay.bridge.records import RecordKind, struct_record
from relay.edge.caller import Caller
from relay.edge.upstream import client
from relay.edge.upstream.client import UpstreamClient
from relay.errors import AgentUnavailable, BadRequest, Forbidden, NotFound, RelayError
from relay.metrics import EdgeMetrics
from relay.model import Principal
from tests.edge.test_parent import CONFIG
from tests.fakes import Agent
from tests.virtualtime import virtual

ATTACH = Attach(link="l", principal="p")
CALLER = Caller(Principal("token", "ada"), Rights({Action.USE: None}), max_kernels=3)


def test_an_agent_is_shown_what_is_granted_and_no_more() -> None:
    keys = pki.new_ticket_keys()
    opener = UpstreamClient(
        CONFIG,
        TicketSigner(keys.private),
        metrics=EdgeMetrics.local(),
        wall_clock=lambda: 1_800_000_000.0,
    )
    scheme, _, text = opener._headers("alpha", CALLER, "k", "r")["Authorization"].partition(" ")
    assert scheme == "Bearer"
    shown = TicketVerifier([keys.public], "alpha").verify(text, 1_800_000_000.0)
    assert shown == Ticket(
        principal=CALLER.principal,
        cluster="alpha",
        kernel="k",
        rights=CALLER.rights,
        max_kernels=CALLER.max_kernels,
        request_id="r",
    )


class Refusal:
    """An agent's answer that is no upgrade."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        self.status = status
        self.closed = False
        self.content = SimpleNamespace(read=self._read)
        self._body = body

    async def _read(self, size: int) -> bytes:
        return self._body[:size]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, {"message": "Its holder died 4 times."}, NotFound, "Its holder died 4 times."),
        (404, {}, NotFound, "There is no such kernel."),
        (404, "not JSON", NotFound, "There is no such kernel."),
        (403, {"message": "It is another's."}, Forbidden, "It is another's."),
        (403, {}, Forbidden, "You may not open this kernel's channels."),
        (400, {"message": "secret"}, BadRequest, "The kernel's channels cannot be opened."),
        (503, {}, AgentUnavailable, "The kernel is not available just now."),
        (503, {"message": "It has version 2."}, AgentUnavailable, "It has version 2."),
    ],
)
async def test_what_a_refusal_means(
    status: int, body: Any, kind: type[RelayError], message: str
) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    response: Any = Refusal(status, raw)
    error = await client._refusal(response)
    assert isinstance(error, kind)
    assert error.message == message
    assert response.closed


@virtual
async def test_a_kernel_whose_holder_is_away_is_waited_for() -> None:
    signer: Any = None
    opener = UpstreamClient(CONFIG, signer, metrics=EdgeMetrics.local())
    loop = asyncio.get_running_loop()
    back_at = loop.time() + 20

    async def attempt(*_: object, **__: object) -> str:
        if loop.time() < back_at:
            raise await client._refusal(Refusal(503))  # type: ignore[arg-type]
        return "link"

    opener._clusters["alpha"].attempt = attempt  # type: ignore[method-assign,assignment]
    with pytest.raises(AgentUnavailable):
        await opener.open_link("alpha", "k", ATTACH, CALLER, retry_for=10)
    assert 9 < back_at - loop.time() < 11
    link: Any = await opener.open_link("alpha", "k", ATTACH, CALLER, retry_for=60)
    assert link == "link"
    assert loop.time() - back_at < 1


@virtual
async def test_a_link_that_is_refused_is_tried_again_and_then_told_in_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer: Any = SimpleNamespace(sign=lambda *_: "ticket")
    opener = UpstreamClient(CONFIG, signer, metrics=EdgeMetrics.local())
    tries = []

    async def get(url: object, **_: object) -> Any:
        agent = Agent()
        agent.send(struct_record(RecordKind.CLOSE, Close(1012, "It has version 2.")))
        tries.append(agent)
        return agent

    def link(agent: Agent) -> Any:
        return agent.link

    monkeypatch.setattr(Agent, "status", 101, raising=False)
    monkeypatch.setattr(client, "Link", link)
    opener._fresh = SimpleNamespace(get=get)  # type: ignore[assignment]
    with pytest.raises(AgentUnavailable, match=r"It has version 2\."):
        await opener.open_link("alpha", "k", ATTACH, CALLER, retry_for=10)
    assert len(tries) > 100
    assert all(agent.transport.is_closing() for agent in tries)
