from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlencode

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from websockets.frames import Close as CloseFrame
from websockets.frames import Opcode

from relay.auth.credentials import PresentedCredentials
from relay.auth.policy import Action, Rights
from relay.bridge.control import Attach, Close, Position
from relay.bridge.records import RecordKind, frames_record, struct_record
from relay.config import (
    AuthenticationSettings,
    EdgeConfig,
    EdgeLimits,
    ListenSettings,
    TlsSettings,
    TokenSettings,
    UpstreamSettings,
)
from relay.connections import server
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.caller import Caller
from relay.edge.http.channels import ChannelsHandler, _handshake
from relay.edge.http.context import AuthorizedRequest
from relay.edge.upstream.link import Link
from relay.edge.websocket.pipe import Pipe
from relay.errors import (
    AgentUnavailable,
    BadRequest,
    Forbidden,
    NotFound,
    RelayError,
    Unauthorized,
)
from relay.http import error_response
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from relay.routing.paths import parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import Scope
from tests.fakes import Agent, Browser, FakeTransport, client_frame, text
from tests.virtualtime import elapse, settle, virtual

V1 = "v1.kernel.websocket.jupyter.org"
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The example of RFC 6455 §1.3."""
GOOD = {
    "Host": "relay",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
ADA = Caller(Principal("token", "ada"), Rights({Action.USE: None}))
LESS = Caller(ADA.principal, Rights({Action.USE: frozenset({"python3"})}))
"""The same person, when a rule has changed."""
TOKEN_REQUIRED = Identity(principal=ADA.principal, via="token")
KERNEL_ID = "0a0a0a0a-0000-4000-8000-000000000000"
START = Position("e1", 10)
HOLD, REATTACH, LINK_PING = 10.0, 60.0, 15.0

# The handshake


def handshake(*more: tuple[str, str], without: str = "", **changed: str) -> tuple[bytes, str]:
    headers = CIMultiDict(GOOD)
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    headers.popall(without, None)
    headers.extend(more)
    return _handshake(make_mocked_request("GET", "/", headers=headers))


def headers_of(answer: bytes) -> CIMultiDict[str]:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert rest == b""
    status, *lines = head.decode("ascii").split("\r\n")
    assert status == "HTTP/1.1 101 Switching Protocols"
    pairs = (line.partition(": ") for line in lines)
    return CIMultiDict((name, value) for name, _, value in pairs)


def test_a_good_handshake_is_answered_as_the_rfc_says() -> None:
    answer, subprotocol = handshake()
    headers = headers_of(answer)
    assert headers["Upgrade"].lower() == "websocket"
    assert headers["Connection"].lower() == "upgrade"
    assert headers["Sec-WebSocket-Accept"] == ACCEPT
    assert subprotocol == ""
    assert "Sec-WebSocket-Protocol" not in headers


@pytest.mark.parametrize(
    "odd",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Origin": "https://elsewhere"},
    ],
)
def test_odd_but_right_handshakes_are_answered(odd: dict[str, str]) -> None:
    assert headers_of(handshake(**odd)[0])["Sec-WebSocket-Accept"] == ACCEPT


@pytest.mark.parametrize("missing", sorted(GOOD.keys() - {"Host"}))
def test_a_handshake_with_something_missing_is_refused(missing: str) -> None:
    with pytest.raises(BadRequest, match="WebSocket"):
        handshake(without=missing)


@pytest.mark.parametrize(
    "wrong",
    [
        {"Upgrade": "h2c"},
        {"Upgrade": "websocket, h2c"},
        {"Connection": "keep-alive"},
        {"Connection": "@"},
        {"Sec_WebSocket_Version": "8"},
        {"Sec_WebSocket_Version": "13, 8"},
        {"Sec_WebSocket_Key": ""},
        {"Sec_WebSocket_Key": "c2hvcnQ="},
        {"Sec_WebSocket_Key": "?" * 24},
        {"Sec_WebSocket_Protocol": "a b"},
    ],
)
def test_a_handshake_with_something_wrong_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="WebSocket"):
        handshake(**wrong)


@pytest.mark.parametrize("name", ["Sec-WebSocket-Key", "Sec-WebSocket-Version", "Upgrade"])
def test_a_handshake_that_says_something_twice_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        handshake((name, GOOD[name]))


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([V1], V1),
        ([f"other, {V1}"], V1),
        (["other", V1], V1),
        (["other"], ""),
        (["v2.kernel.websocket.jupyter.org"], ""),
        ([V1.upper()], ""),
    ],
)
def test_v1_is_chosen_whenever_it_is_offered(offers: list[str], chosen: str) -> None:
    answer, subprotocol = handshake(*[("Sec-WebSocket-Protocol", offer) for offer in offers])
    assert subprotocol == chosen
    assert headers_of(answer).get("Sec-WebSocket-Protocol", "") == chosen


@pytest.mark.parametrize(
    "offer", ["permessage-deflate; client_max_window_bits", "x-webkit-deflate-frame", "a; b=1, c"]
)
def test_offers_to_compress_are_declined(offer: str) -> None:
    answer, _ = handshake(("Sec-WebSocket-Extensions", offer))
    assert "Sec-WebSocket-Extensions" not in headers_of(answer)


# A client's whole visit


class FakeUpstream:
    """Opens the links that a test has prepared; raises the errors among them."""

    def __init__(self, links: Sequence[Agent | RelayError | Callable[[], Agent]]) -> None:
        self.links = list(links)
        self.seconds = 1.0
        self.asked: list[tuple[Attach, float]] = []
        self.callers: list[Caller] = []

    async def open_link(
        self, cluster: str, kernel_id: str, attach: Attach, caller: Caller, *, retry_for: float
    ) -> Link:
        assert (cluster, kernel_id) == ("alpha", KERNEL_ID)
        self.asked.append((attach, retry_for))
        self.callers.append(caller)
        await elapse(self.seconds)
        link = self.links.pop(0)
        if isinstance(link, RelayError):
            raise link
        return link.link if isinstance(link, Agent) else link().link


class Visit:
    """A client on a real HTTP connection of the edge, without a network."""

    def __init__(
        self,
        *links: Agent | RelayError | Callable[[], Agent],
        session_id: str = "s",
        last_seq: str | None = None,
    ) -> None:
        self.upstream = FakeUpstream(links)
        config = EdgeConfig(
            https=ListenSettings(port=1),
            wss=ListenSettings(port=2),
            tls=TlsSettings(certificate="", key=""),
            authentication=AuthenticationSettings(tokens=TokenSettings(file="t")),
            ticket_key="",
            clusters={},
            limits=EdgeLimits(),
            upstream=UpstreamSettings(
                websocket_hold=HOLD, reattach=REATTACH, link_ping_interval=LINK_PING
            ),
        )
        self.channels = ChannelsHandler(
            config,
            self.upstream,  # type: ignore[arg-type]
            EdgeMetrics.local(),
            self._follow,
        )
        self.followed: list[Identity] = []
        self.done = asyncio.Event()
        self.granted: list[Caller | RelayError] = []
        """What a policy that changes grants from now on, one after the other."""
        self.stream = AuthorizedStream(TOKEN_REQUIRED, self._authorize, ADA, {})
        self._session_id = session_id
        self._last_seq = last_seq
        self.transport = FakeTransport(server(self._handle)())
        self.transport.protocol.connection_made(self.transport)
        self.browser = Browser(self.transport)

    @contextlib.contextmanager
    def _follow(self, identity: Identity, _: Pipe) -> Iterator[None]:
        self.followed.append(identity)
        yield
        self.followed.remove(identity)

    async def opened(self) -> None:
        """The audit log has nothing against it."""

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self.channels.handle(self._context(request), self.stream, self.opened)
        except RelayError as error:
            return error_response(error, "r1")
        finally:
            self.done.set()

    def _context(self, request: web.BaseRequest) -> AuthorizedRequest:
        query = {"session_id": self._session_id, "last_seq": self._last_seq}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        target = parse_target(f"/api/kernels/{KERNEL_ID}/channels?{given}")
        return AuthorizedRequest(
            request=request,
            request_id="r1",
            address="192.0.2.1",
            channels_only=False,
            target=target,
            prefix="",
            path_token=None,
            credentials=PresentedCredentials("T"),
            identity=TOKEN_REQUIRED,
            cluster="alpha",
            matched=ROUTES.match(Scope.CLUSTER, "GET", target.segments),
            caller=ADA,
        )

    def _authorize(self, _: Identity) -> Caller:
        granted = self.granted.pop(0)
        if isinstance(granted, RelayError):
            raise granted
        return granted

    def change(self, caller: Caller) -> None:
        """The policy grants this from now on."""
        self.granted.append(caller)
        assert self.stream.reauthorize(TOKEN_REQUIRED) is None

    def request(self, *more: bytes, protocol: str = V1) -> None:
        lines = [f"{name}: {value}" for name, value in GOOD.items()]
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        head = "\r\n".join(["GET /x HTTP/1.1", *lines, "", ""]).encode()
        self.transport.protocol.data_received(head + b"".join(more))

    async def open(self, *more: bytes) -> None:
        """Shake hands; ``more`` comes with the request already."""
        self.request(*more)
        await elapse(1.1)
        await settle()
        head, _, rest = self.transport.take().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        self.transport.written += rest

    async def leave(self) -> None:
        self.transport.lose()
        await asyncio.wait_for(self.done.wait(), 5)
        await settle()


def output(seq: int, fragment: int = 0) -> bytes:
    return frames_record(seq, fragment, [b"\x81\x01x"])


def kinds(agent: Agent) -> list[RecordKind]:
    return [kind for kind, _ in agent.received() if kind is not RecordKind.PING]


def closing(visit: Visit) -> tuple[int, str]:
    frame = visit.browser.received()[-1]
    assert frame.opcode is Opcode.CLOSE
    close = CloseFrame.parse(frame.data)
    return int(close.code), close.reason


@virtual
async def test_a_visit_from_handshake_to_goodbye() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    await visit.open()
    agent.send(output(11))
    assert visit.transport.written[:3] == b"\x81\x01x"
    visit.browser.send(text(b"{}"))
    assert kinds(agent) == [RecordKind.MESSAGE]
    visit.browser.send(client_frame(Opcode.CLOSE, struct.pack(">H", 1000)))
    await asyncio.wait_for(visit.done.wait(), 1)
    await settle()
    assert kinds(agent) == [RecordKind.DETACH]
    assert agent.transport.lost
    # After the close frame nobody writes anything, aiohttp neither.
    taken = visit.transport.take()
    assert (taken[:3], taken[-4:]) == (b"\x81\x01x", b"\x88\x02\x03\xe8")
    assert not visit.transport.late
    assert not visit.channels._pipes


@virtual
async def test_a_visit_is_followed_for_as_long_as_it_lasts() -> None:
    visit = Visit(Agent.attached(START))
    assert visit.followed == []
    await visit.open()
    assert visit.followed == [TOKEN_REQUIRED]
    visit.transport.lose()
    await asyncio.wait_for(visit.done.wait(), 1)
    assert visit.followed == []


@virtual
async def test_what_the_agent_is_told_of_a_client() -> None:
    visit = Visit(Agent.attached(START))
    await visit.open()
    ((attach, hold),) = visit.upstream.asked
    assert len(bytes.fromhex(attach.link)) == 16
    assert attach == Attach(
        link=attach.link,
        principal="token:ada",
        session_id="s",
        subprotocol=V1,
        position=None,
        request_id="r1",
    )
    assert hold == HOLD
    await visit.leave()


@virtual
async def test_every_visit_has_a_link_of_its_own() -> None:
    links = set()
    for _ in range(3):
        visit = Visit(Agent.attached(START))
        await visit.open()
        links.add(visit.upstream.asked[0][0].link)
        await visit.leave()
    assert len(links) == 3


@virtual
async def test_frames_that_come_with_the_request_are_taken() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    await visit.open(text(b"1"), text(b"2")[:3])
    visit.browser.send(text(b"2")[3:])
    assert kinds(agent) == [RecordKind.MESSAGE, RecordKind.MESSAGE]
    await visit.leave()


@virtual
async def test_frames_that_come_before_the_answer_are_taken() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    visit.request()
    await asyncio.sleep(0.5)
    visit.browser.send(text(b"1"))
    await asyncio.sleep(1)
    assert kinds(agent) == [RecordKind.MESSAGE]
    await visit.leave()


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("no such kernel"), b"404"), (AgentUnavailable("down", retry_after=2), b"503")],
)
@virtual
async def test_without_a_link_there_is_no_upgrade(error: RelayError, status: bytes) -> None:
    visit = Visit(error)
    visit.request()
    await asyncio.sleep(2)
    answer = visit.transport.take()
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert error.message.encode() in answer
    await visit.leave()


@virtual
async def test_no_link_is_opened_for_what_is_no_handshake() -> None:
    visit = Visit()
    visit.transport.protocol.data_received(b"GET /x HTTP/1.1\r\nHost: relay\r\n\r\n")
    await settle()
    assert visit.transport.take().startswith(b"HTTP/1.1 400 ")
    assert visit.upstream.asked == []
    await visit.leave()


@pytest.mark.parametrize("body", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@virtual
async def test_a_handshake_with_a_body_is_refused(body: str) -> None:
    visit = Visit(Agent.attached(START))
    lines = [*(f"{name}: {value}" for name, value in GOOD.items()), body, "", ""]
    visit.transport.protocol.data_received("\r\n".join(["GET /x HTTP/1.1", *lines]).encode())
    await asyncio.sleep(2)
    assert visit.transport.take().startswith(b"HTTP/1.1 400 ")
    assert visit.upstream.asked == []
    await visit.leave()


@pytest.mark.parametrize(("length", "opened"), [(512, True), (513, False)])
@virtual
async def test_a_session_id_has_a_limit(length: int, opened: bool) -> None:
    visit = Visit(Agent.attached(START), session_id="s" * length)
    visit.request()
    await asyncio.sleep(2)
    assert visit.transport.take().startswith(b"HTTP/1.1 101" if opened else b"HTTP/1.1 400")
    assert bool(visit.upstream.asked) is opened
    await visit.leave()


@virtual
async def test_a_client_that_left_before_its_upgrade_leaves_no_link_behind() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    visit.request()
    await asyncio.sleep(0.5)
    visit.transport.lose()
    await asyncio.sleep(1)
    await settle()
    assert agent.transport.lost
    assert not visit.channels._pipes


@virtual
async def test_a_lost_link_is_followed_by_another_from_where_the_client_stands() -> None:
    first, second = Agent.attached(START), Agent.attached(Position("e1", 12, 1))
    visit = Visit(first, second)
    await visit.open()
    first.send(output(11), output(12, 1))
    visit.browser.send(text(b"1"))
    first.transport.lose()
    await asyncio.sleep(1.2)
    (before, _), (after, hold) = visit.upstream.asked
    assert after.position == Position("e1", 12, 1)
    assert after.link == before.link
    assert hold == REATTACH
    assert RecordKind.MESSAGE in kinds(second)
    second.send(output(13))
    assert visit.transport.written.count(b"\x81\x01x") == 3
    await visit.leave()


@virtual
async def test_an_agent_that_dies_at_once_is_not_hurried() -> None:
    def dead() -> Agent:
        agent = Agent.attached(START)
        agent.transport.lose()
        return agent

    first = Agent.attached(START)
    visit = Visit(first, *[dead] * 100)
    await visit.open()
    visit.upstream.seconds = 0
    first.transport.lose()
    await asyncio.sleep(1)
    assert 15 <= len(visit.upstream.asked) <= 21
    await visit.leave()


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFound("no such kernel"), 1011), (AgentUnavailable("The cluster is away."), 1012)],
)
@virtual
async def test_without_another_link_the_client_is_sent_away(error: RelayError, code: int) -> None:
    agent = Agent.attached(START)
    visit = Visit(agent, error)
    await visit.open()
    agent.transport.lose()
    await asyncio.sleep(1.2)
    assert closing(visit)[0] == code
    # It does not answer, and is cut off.
    await asyncio.wait_for(visit.done.wait(), 6)
    assert visit.transport.aborted
    assert len(visit.upstream.asked) == 2


@virtual
async def test_a_close_record_ends_the_visit() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    await visit.open()
    agent.send(struct_record(RecordKind.CLOSE, Close(1000, "replaced")))
    assert closing(visit) == (1000, "replaced")
    await asyncio.wait_for(visit.done.wait(), 6)
    assert len(visit.upstream.asked) == 1


@virtual
async def test_a_client_that_leaves_while_its_link_is_lost_leaves_none_behind() -> None:
    first, second = Agent.attached(START), Agent.attached(START)
    visit = Visit(first, second)
    await visit.open()
    first.transport.lose()
    await asyncio.sleep(0.5)
    visit.transport.lose()
    await asyncio.wait_for(visit.done.wait(), 5)
    await settle()
    assert second.transport.lost


@virtual
async def test_drain_sends_everybody_away() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    await visit.open()
    visit.channels.drain()
    assert closing(visit) == (1012, "the relay is restarting")
    visit.browser.send(client_frame(Opcode.CLOSE, struct.pack(">H", 1012)))
    await asyncio.wait_for(visit.done.wait(), 1)


@virtual
async def test_drain_while_a_link_is_being_opened_leaves_none_behind() -> None:
    first, second = Agent.attached(START), Agent.attached(START)
    visit = Visit(first, second)
    await visit.open()
    first.transport.lose()
    await asyncio.sleep(0.5)
    visit.channels.drain()
    await asyncio.sleep(1)
    second.send(output(11))
    assert closing(visit)[0] == 1012
    await settle()
    assert second.transport.lost
    await asyncio.wait_for(visit.done.wait(), 6)
    assert len(visit.upstream.asked) == 2


@virtual
async def test_a_link_that_falls_silent_is_replaced() -> None:
    first, second = Agent.attached(START), Agent.attached(START)
    visit = Visit(first, second)
    await visit.open()
    await asyncio.sleep(LINK_PING + 2)
    assert first.transport.aborted
    assert len(visit.upstream.asked) == 2
    assert not visit.transport.is_closing()
    await visit.leave()


# Rights that change, and end


@pytest.mark.parametrize(
    ("error", "code"), [(Unauthorized("revoked"), 4401), (Forbidden("no longer"), 4403)]
)
@virtual
async def test_who_may_stay_no_longer_is_told_why(error: RelayError, code: int) -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    await visit.open()
    visit.stream.revoke(error)
    # Nothing of what comes now reaches the kernel, though the socket is open for an answer.
    visit.browser.send(text(b"{}"))
    assert kinds(agent) == [RecordKind.DETACH]
    assert closing(visit) == (code, error.message)
    await visit.leave()


@virtual
async def test_who_does_not_answer_is_cut_off() -> None:
    visit = Visit(Agent.attached(START))
    await visit.open()
    visit.stream.revoke(Unauthorized("revoked"))
    await asyncio.wait_for(visit.done.wait(), 6)
    assert visit.transport.aborted
    await settle()


@virtual
async def test_who_lost_the_right_during_the_handshake_does_not_come_in() -> None:
    agent = Agent.attached(START)
    visit = Visit(agent)
    visit.request()
    await asyncio.sleep(0.5)
    visit.stream.revoke(Unauthorized("the credential was revoked"))
    await asyncio.sleep(2)
    assert visit.transport.take().startswith(b"HTTP/1.1 401 ")
    await settle()
    assert agent.transport.lost
    await visit.leave()


@virtual
async def test_other_rights_make_another_link() -> None:
    first, second = Agent.attached(START), Agent.attached(Position("e1", 11))
    visit = Visit(first, second)
    await visit.open()
    first.send(output(11))
    visit.browser.send(text(b"1"))
    visit.change(LESS)
    # As from an agent that died: no goodbye, and what it had not acknowledged is sent again.
    assert kinds(first) == [RecordKind.MESSAGE]
    visit.browser.send(text(b"2"))
    await asyncio.sleep(1.1)
    assert visit.upstream.callers == [ADA, LESS]
    attach, again = (asked for asked, _ in visit.upstream.asked)
    assert again == msgspec.structs.replace(attach, position=Position("e1", 11))
    assert kinds(second)[-2:] == [RecordKind.MESSAGE, RecordKind.MESSAGE]
    second.send(output(12))
    assert [frame.opcode for frame in visit.browser.received() if frame.opcode is Opcode.TEXT] == [
        Opcode.TEXT,
        Opcode.TEXT,
    ]
    await visit.leave()


@virtual
async def test_rights_that_change_during_the_handshake() -> None:
    first, second = Agent.attached(START), Agent.attached(START)
    visit = Visit(first, second)
    visit.request()
    await asyncio.sleep(0.5)
    visit.change(LESS)
    await asyncio.sleep(2)
    assert visit.upstream.callers == [ADA, LESS]
    await settle()
    assert first.transport.lost
    assert not second.transport.is_closing()
    await visit.leave()


@virtual
async def test_rights_that_change_while_a_link_is_asked_for() -> None:
    first, second, third = (Agent.attached(START) for _ in range(3))
    visit = Visit(first, second, third)
    await visit.open()
    visit.change(LESS)
    await asyncio.sleep(0.5)
    visit.change(ADA)
    await asyncio.sleep(2)
    assert visit.upstream.callers == [ADA, LESS, ADA]
    await settle()
    assert second.transport.lost
    assert not third.transport.is_closing()
    await visit.leave()


@virtual
async def test_an_agent_that_knows_no_kernel_for_these_rights_ends_it() -> None:
    visit = Visit(Agent.attached(START), NotFound("There is no such kernel."))
    await visit.open()
    visit.change(LESS)
    await asyncio.sleep(1.1)
    assert closing(visit) == (4403, "There is no such kernel.")
    await visit.leave()


# Tokens in subprotocols

TOKEN_PROTOCOL = "v1.token.websocket.jupyter.org"


@pytest.mark.parametrize(
    ("offer", "chosen", "spoken"),
    [
        (f"{TOKEN_PROTOCOL}, {TOKEN_PROTOCOL}.abc", TOKEN_PROTOCOL, ""),
        (f"{TOKEN_PROTOCOL}.abc, {TOKEN_PROTOCOL}", TOKEN_PROTOCOL, ""),
        (f"{TOKEN_PROTOCOL}, {TOKEN_PROTOCOL}.abc, {V1}", V1, V1),
        (f"{V1}, {TOKEN_PROTOCOL}.abc", V1, V1),
        (f"{TOKEN_PROTOCOL}.abc", "", ""),
        (f"other, {TOKEN_PROTOCOL}.abc", "", ""),
        (TOKEN_PROTOCOL, "", ""),
        (f"{TOKEN_PROTOCOL}, other", "", ""),
    ],
)
def test_what_holds_a_token_is_never_chosen(offer: str, chosen: str, spoken: str) -> None:
    answer, subprotocol = handshake(("Sec-WebSocket-Protocol", offer))
    assert subprotocol == spoken
    assert headers_of(answer).get("Sec-WebSocket-Protocol", "") == chosen
    assert b"abc" not in answer
