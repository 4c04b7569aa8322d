from __future__ import annotations

from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from relay.auth.origin import Origins
from relay.edge.http.context import EarlyResponse
from relay.edge.http.cors import CorsPolicy
from relay.errors import Forbidden
from relay.http import RESPONSE_HEADERS

HOST = "relay.example"
OWN, LISTED, FOREIGN = f"https://{HOST}", "https://lab.example", "https://elsewhere.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST"}
READABLE = {
    "Vary": "Origin",
    "Access-Control-Allow-Origin": LISTED,
    "Access-Control-Expose-Headers": "Location, Retry-After, X-Request-Id",
}
POLICY = CorsPolicy(Origins([LISTED]))


def request(
    method: str, *origins: str, headers: Mapping[str, str] | None = None
) -> web.BaseRequest:
    written = CIMultiDict(headers or {})
    written.extend([("Origin", origin) for origin in origins])
    return make_mocked_request(method, "/alpha/api", headers=written)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("origins", [(), (OWN,)])
def test_programs_and_the_relays_own_pages_may_send_everything(
    method: str, origins: tuple[str, ...]
) -> None:
    asked = request(method, *origins, headers=PREFLIGHT)
    POLICY.check(asked, HOST)
    assert asked[RESPONSE_HEADERS] == {"Vary": "Origin"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_listed_page_may_send_everything_and_read_the_answers(method: str) -> None:
    asked = request(method, LISTED, headers=PREFLIGHT)
    POLICY.check(asked, HOST)
    assert asked[RESPONSE_HEADERS] == READABLE


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
@pytest.mark.parametrize("origins", [(FOREIGN,), ("null",), (LISTED, LISTED)])
def test_a_foreign_page_changes_nothing(method: str, origins: tuple[str, ...]) -> None:
    asked = request(method, *origins)
    with capture_logs() as logged, pytest.raises(Forbidden, match=r"\(origins\)"):
        POLICY.check(asked, HOST)
    assert [(each["event"], each["origin"]) for each in logged] == [("origin_refused", origins[0])]
    assert asked[RESPONSE_HEADERS] == {"Vary": "Origin"}


def test_a_foreign_page_opens_no_websocket() -> None:
    with pytest.raises(Forbidden):
        POLICY.check(request("GET", FOREIGN, headers={"Upgrade": "websocket"}), HOST)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_foreign_page_cannot_read_what_it_may_send(method: str) -> None:
    asked = request(method, FOREIGN, headers=PREFLIGHT)
    POLICY.check(asked, HOST)
    assert asked[RESPONSE_HEADERS] == {"Vary": "Origin"}


def test_a_preflight_of_a_listed_page_is_answered_at_once() -> None:
    asked = request("OPTIONS", LISTED, headers=PREFLIGHT)
    with pytest.raises(EarlyResponse) as early:
        POLICY.check(asked, HOST)
    response = early.value.response
    assert response.status == 204
    assert response.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type"
    allowed = response.headers["Access-Control-Allow-Methods"]
    assert allowed == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert response.headers["Access-Control-Max-Age"] == "600"
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert asked[RESPONSE_HEADERS] == READABLE


def test_options_of_a_listed_page_without_a_method_is_no_preflight() -> None:
    asked = request("OPTIONS", LISTED)
    POLICY.check(asked, HOST)
    assert asked[RESPONSE_HEADERS] == READABLE


def test_without_a_list_answers_do_not_depend_on_the_origin() -> None:
    policy = CorsPolicy(Origins())
    asked = request("GET", LISTED)
    policy.check(asked, HOST)
    assert asked[RESPONSE_HEADERS] == {}
    with pytest.raises(Forbidden):
        policy.check(request("POST", LISTED), HOST)
