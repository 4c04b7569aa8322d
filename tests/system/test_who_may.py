"""Who may do what: every route, every method, everybody, cell by cell, on a relay that runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay.auth.policy import Action
from relay.config import RuleSettings
from relay.routing.routes import ROUTES
from relay.routing.table import Scope
from tests.system.channels import Channels, Message
from tests.system.people import Peopled
from tests.system.running import Answer, wait_for
from tests.system.wire import refusal

# Names that are read wrongly where a principal is put together, or taken apart, carelessly.
OWNER: Final = "ada lovelace:1"
OTHER: Final = "ada lovelace"
ADMIN: Final = "token:ada lovelace:1"
USER: Final = "ur sula"
VIEWER: Final = "vi"
LIMITED: Final = "lim"
"""May do everything, with kernels of another kernelspec only."""
LISTENER: Final = "listener"
"""May view, list and nothing else."""
NOBODY: Final = None
PEOPLE: Final = (OWNER, OTHER, ADMIN, USER, VIEWER, LIMITED, LISTENER)
EVERYBODY: Final = (*PEOPLE, NOBODY)

ABSENT: Final = "00000000-0000-4000-8000-000000000000"
RULES: Final = [
    *(
        RuleSettings(
            authenticator="token",
            user=name,
            actions=[action for action in Action if action is not Action.ADMIN],
        )
        for name in (OWNER, OTHER, USER, VIEWER)
    ),
    RuleSettings(authenticator="token", user=ADMIN, actions=list(Action)),
    RuleSettings(
        authenticator="token",
        user=LIMITED,
        actions=[action for action in Action if action is not Action.ADMIN],
        kernelspecs=["other"],
    ),
    RuleSettings(authenticator="token", user=LISTENER, actions=[Action.LIST, Action.VIEW]),
]
OTHER_SPEC: Final = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Other",
    "language": "python",
}

pytestmark = pytest.mark.timeout(600)


class Place(NamedTuple):
    """The relay, and what is on it: all of it the owner's."""

    relay: Peopled
    kernel: str
    session: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    share = tmp_path_factory.mktemp("share")
    spec = share / "kernels" / "other"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(OTHER_SPEC))
    (spec / "logo-64x64.png").write_bytes(b"\x89PNG")
    with Peopled(PEOPLE, RULES, environ={"JUPYTER_PATH": str(share)}) as relay:
        kernel = relay.begin(OWNER)
        body = {"path": "a.ipynb", "type": "notebook", "kernel": {"id": kernel}}
        session = relay.ask(OWNER, "POST", "/alpha/api/sessions", body)
        assert session.status == 201
        relay.grant(OWNER, kernel, "token:ur%20sula", "use")
        relay.grant(OWNER, kernel, "vi", "view")
        yield Place(relay, kernel, session.json["id"])


# The table. By hand: who may, of those whom the kernel is not hidden from; the rest of these are
# told 403, everybody else 404, and nobody without a token anything but 401.

SEES: Final = frozenset({OWNER, ADMIN, USER, VIEWER})
CHARGE: Final = {OWNER, ADMIN}
RUNS: Final = {OWNER, ADMIN, USER}
ALL: Final = set(PEOPLE)
STARTS: Final = ALL - {LISTENER}


class Row(NamedTuple):
    method: str
    path: str
    may: Collection[str]
    status: int = 200
    sees: frozenset[str] = frozenset()
    """Who is told 403 where they may not; others 404."""
    body: Any = None
    lacking: frozenset[str] = frozenset()
    """Whom no rule grants the action at all: the edge says 403, whatever the kernel."""


NO_RIGHT: Final = frozenset({LISTENER})
K, S = "/alpha/api/kernels/KERNEL", "/alpha/api/sessions/SESSION"
GET_ROWS: Final = [
    Row("GET", "/alpha/api", ALL),
    Row("GET", "/alpha/api/status", ALL),
    Row("GET", "/alpha/api/me", ALL),
    Row("GET", "/alpha/api/kernels", ALL),
    Row("GET", "/alpha/api/sessions", ALL),
    Row("GET", "/alpha/api/kernelspecs", STARTS),
    Row("GET", "/alpha/api/kernelspecs/python3", STARTS - {LIMITED}),
    Row("GET", "/alpha/api/kernelspecs/other", STARTS),
    Row("GET", "/alpha/api/kernelspecs?user=u/python3", STARTS - {LIMITED}),
    Row("GET", "/alpha/api/kernelspecs?user=u/other", STARTS),
    Row("GET", "/alpha/kernelspecs/python3/logo-64x64.png", STARTS - {LIMITED}),
    Row("GET", "/alpha/kernelspecs/PYTHON3/logo-64x64.png", STARTS - {LIMITED}),
    Row("GET", "/alpha/kernelspecs/other/logo-64x64.png", STARTS),
    Row("GET", K, SEES),
    Row("GET", f"{K}/messages", SEES),
    Row("GET", f"{K}/grants", CHARGE, sees=SEES, lacking=NO_RIGHT),
    Row("GET", S, CHARGE),
]
ROWS: Final = [
    *GET_ROWS,
    *(row._replace(method="HEAD") for row in GET_ROWS),
    Row("POST", f"{K}/interrupt", RUNS, 204, SEES, lacking=NO_RIGHT),
    Row(
        "PUT",
        f"{K}/grants/token:vi",
        CHARGE,
        sees=SEES,
        body={"action": "view"},
        lacking=NO_RIGHT,
    ),
    Row("PATCH", S, CHARGE, body={"name": "renamed"}, lacking=NO_RIGHT),
    # Nobody gets at a kernel by its id: an id that is taken is all that is said.
    Row("POST", "/alpha/api/kernels", {OWNER}, 201, body={"kernel_id": "KERNEL", "name": "other"}),
]


def target(place: Place, row: Row, kernel: str | None = None, session: str | None = None) -> Any:
    path = row.path.replace("KERNEL", kernel or place.kernel)
    body = json.loads(json.dumps(row.body).replace("KERNEL", kernel or place.kernel))
    return path.replace("SESSION", session or place.session), body


def expected(row: Row, who: str | None) -> int:
    if who is NOBODY:
        return 401
    if who in row.may:
        return row.status
    if who in row.lacking or (row.method == "POST" and row.path.endswith("/kernels")):
        return 403 if who in NO_RIGHT else 409
    return 403 if who in row.sees else 404


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_the_table(place: Place, row: Row, who: str | None) -> None:
    path, body = target(place, row)
    answer = place.relay.ask(who, row.method, path, body)
    assert answer.status == expected(row, who), answer
    if answer.status == 404 and row.method != "HEAD":
        # In the words for what is not there at all.
        absent = {place.kernel: ABSENT, place.session: ABSENT, "python3": "no", "other": "no"}
        for name, other in absent.items():
            path = path.replace(name, other)
        path = path.replace("PYTHON3", "no")
        nothing = place.relay.ask(OWNER, row.method, path, body)
        said = refusal(answer, 404, "Not found")
        for name, other in absent.items():
            said = said.replace(name, other)
        if row.path != "/alpha/api/kernelspecs":
            assert refusal(nothing, 404, "Not found") == said
    # And the other port serves nothing but channels, to nobody.
    there = place.relay.ask(who, row.method, path, body, port="wss")
    assert there.status in ({401} if who is NOBODY else {404, 403})


PATHS: Final = sorted({row.path.partition("?")[0] for row in ROWS} | {f"{K}/restart"})
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("path", PATHS)
def test_every_other_method_is_taken_from_nobody(place: Place, path: str, who: str | None) -> None:
    segments = tuple(path.replace("KERNEL", ABSENT).replace("SESSION", ABSENT).split("/")[2:])
    taken = ROUTES.allowed_methods(Scope.CLUSTER, segments)
    for method in METHODS:
        if method not in taken:
            real, _ = target(place, Row(method, path, set()))
            answer = place.relay.ask(who, method, real)
            assert answer.status == (401 if who is NOBODY else 405), (method, answer)


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("port", ["https", "wss"])
def test_channels(place: Place, who: str | None, port: Any) -> None:
    relay = place.relay
    if who in SEES:
        with relay.open(who, place.kernel, port=port) as channels:
            # Whoever hears it may ask what it is, and is answered.
            msg_id = channels.send("shell", "kernel_info_request", {})
            assert reply_to(channels, msg_id)["content"]["status"] == "ok"
        return
    for kernel in (place.kernel, ABSENT):
        with pytest.raises(InvalidStatus) as refused:
            relay.open(who, kernel, port=port)
        assert refused.value.response.status_code == (401 if who is NOBODY else 404)


@pytest.mark.parametrize("who", PEOPLE)
def test_lists(place: Place, who: str) -> None:
    relay = place.relay
    kernels = relay.ask(who, "GET", "/alpha/api/kernels").json
    assert (place.kernel in [each["id"] for each in kernels]) is (who in SEES)
    sessions = relay.ask(who, "GET", "/alpha/api/sessions").json
    assert (place.session in [each["id"] for each in sessions]) is (who in CHARGE)
    status = relay.ask(who, "GET", "/alpha/api/status").json
    assert (status["kernels"] > 0) is (who == OWNER)
    if who in STARTS:
        specs = relay.ask(who, "GET", "/alpha/api/kernelspecs").json
        found = set(specs["kernelspecs"])
        assert found == {"other"} if who == LIMITED else found >= {"python3", "other"}
        assert specs["default"] == ("other" if who == LIMITED else "python3")
    else:
        answer = relay.ask(who, "GET", "/alpha/api/kernelspecs")
        assert "no kernelspecs" in refusal(answer, 404, "Not found")


SESSIONS_ON_IT: Final = {OWNER: 201, ADMIN: 201, USER: 201, VIEWER: 403, LISTENER: 403}


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_session_on_the_kernel(place: Place, who: str | None) -> None:
    for named in ({}, {"name": "other"}):
        body = {
            "path": f"{who} {len(named)}.ipynb",
            "type": "notebook",
            "kernel": {"id": place.kernel, **named},
        }
        answer = place.relay.ask(who, "POST", "/alpha/api/sessions", body)
        hidden = 409 if named else 400
        wanted = 401 if who is NOBODY else SESSIONS_ON_IT.get(who, hidden)
        assert answer.status == wanted, answer
        if wanted == 400:
            body["kernel"] = {"id": ABSENT}
            absent = place.relay.ask(who, "POST", "/alpha/api/sessions", body)
            assert absent.json["message"] == answer.json["message"]


@pytest.mark.parametrize("who", EVERYBODY)
def test_restart(place: Place, who: str | None) -> None:
    row = Row("POST", f"{K}/restart", CHARGE, 200, SEES, {}, NO_RIGHT)
    path, body = target(place, row)
    assert place.relay.ask(who, "POST", path, body).status == expected(row, who)


@pytest.mark.parametrize("what", ["kernel", "session"])
def test_the_end(place: Place, what: str) -> None:
    relay = place.relay
    row = Row("DELETE", K if what == "kernel" else S, CHARGE, 204, SEES, None, NO_RIGHT)
    if what == "session":
        row = row._replace(sees=frozenset())
    for who in EVERYBODY:
        if who not in CHARGE:
            path, _ = target(place, row)
            assert relay.ask(who, "DELETE", path).status == expected(row, who)
    for who in CHARGE:
        body = {"path": f"end of {who}", "type": "notebook"}
        model = relay.ask(OWNER, "POST", "/alpha/api/sessions", body).json
        path, _ = target(place, row, model["kernel"]["id"], model["id"])
        assert relay.ask(who, "DELETE", path).status == 204
        assert relay.ask(OWNER, "GET", path).status == 404


# Viewers


def reply_to(channels: Channels, msg_id: str, seen: list[Message] | None = None) -> Message:
    while True:
        message = channels.receive()
        if seen is not None:
            seen.append(message)
        is_reply = message["header"]["msg_type"].endswith("_reply")
        if is_reply and message["parent_header"].get("msg_id") == msg_id:
            return message


def test_a_viewer_hears_a_busy_kernel_and_is_not_heard(place: Place) -> None:
    relay = place.relay
    # With the session_id of the owner, which opens nothing.
    with (
        relay.open(OWNER, place.kernel, "same") as owner,
        relay.open(VIEWER, place.kernel, "same") as viewer,
    ):
        code = "import time; print('begun', flush=True); time.sleep(4); x = input('?'); print(x)"
        cell = owner.submit(code, allow_stdin=True)
        heard: list[Message] = []
        while not any(each["content"].get("text") == "begun\n" for each in heard):
            heard.append(viewer.receive())
        begun = time.monotonic()
        info = viewer.send("shell", "kernel_info_request", {})
        assert reply_to(viewer, info, heard)["content"]["language_info"]["name"] == "python"
        for channel, msg_type in (
            ("shell", "execute_request"),
            ("shell", "comm_info_request"),
            ("shell", "complete_request"),
            ("control", "interrupt_request"),
            ("control", "shutdown_request"),
            ("control", "debug_request"),
        ):
            msg_id = viewer.send(channel, msg_type, {"code": "y = 1", "silent": False})
            refused = reply_to(viewer, msg_id, heard)
            assert refused["channel"] == channel
            assert refused["header"]["msg_type"] == msg_type.replace("_request", "_reply")
            assert refused["content"]["ename"] == "RelayViewOnly"
        # While the cell ran: nothing waited for the kernel.
        assert time.monotonic() - begun < 3.5
        # The owner is asked; the viewer cannot answer.
        while (asked := owner.receive())["header"]["msg_type"] != "input_request":
            assert asked["parent_header"].get("msg_id") in {cell, None}
        viewer.send("stdin", "input_reply", {"value": "evil"}, parent=asked["parent_header"])
        viewer.send("shell", "comm_open", {"comm_id": "1", "target_name": "x", "data": {}})
        time.sleep(0.5)
        owner.send("stdin", "input_reply", {"value": "good"}, parent=asked["header"])
        done = owner.collect(cell)
        assert done.stdout == "good\n"
        assert owner.execute("'y' in dir()").replies[0]["status"] == "ok"
        while not any(each["content"].get("text") == "good\n" for each in heard):
            heard.append(viewer.receive())
    of_the_cell = {
        each["header"]["msg_type"] for each in heard if each["parent_header"].get("msg_id") == cell
    }
    assert {"status", "stream"} <= of_the_cell
    assert not of_the_cell & {"execute_reply", "input_request"}
    with relay.open(OWNER, place.kernel) as owner:
        assert owner.execute("print('y' in dir())").stdout == "False\n"


def test_a_viewers_past_is_what_was_for_everybody(place: Place) -> None:
    relay = place.relay
    with relay.open(OWNER, place.kernel) as owner:
        owner.execute("print('for everybody')")
    answer = relay.ask(VIEWER, "GET", f"/alpha/api/kernels/{place.kernel}/messages?since=0")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert {line["channel"] for line in lines} == {"iopub"}
    assert any(line["content"].get("text") == "for everybody\n" for line in lines)


# Grants


def read_on(channels: Channels) -> NoReturn:
    while True:
        channels.receive()


def closed(channels: Channels) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as ended:
        read_on(channels)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


@pytest.fixture
def own(place: Place) -> Iterator[str]:
    """A kernel of the owner's that nobody else has heard of."""
    kernel = place.relay.begin(OWNER)
    yield kernel
    assert place.relay.ask(OWNER, "DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_a_grant_and_its_end(place: Place, own: str) -> None:
    relay, path = place.relay, f"/alpha/api/kernels/{own}"
    bobs = f"{path}/grants/token:ada%20lovelace"
    assert relay.ask(OTHER, "GET", path).status == 404
    assert relay.ask(OWNER, "GET", f"{path}/grants").json == []
    assert relay.ask(OWNER, "DELETE", bobs).status == 404
    relay.grant(OWNER, own, "token:ada%20lovelace", "use")
    shown = {"user": "token:ada lovelace", "action": "use"}
    assert relay.ask(OWNER, "GET", f"{path}/grants").json == [shown]
    with relay.open(OTHER, own) as used, relay.open(OTHER, own, "again", port="https") as again:
        assert used.execute("print(1)").stdout == "1\n"
        # Narrowed: what could speak ends, and comes back to listen.
        relay.grant(OWNER, own, "ada%20lovelace", "view")
        assert closed(used) == (4403, "you may now only view the kernel")
        assert closed(again)[0] == 4403
    with relay.open(OTHER, own) as viewed, following(relay, OTHER, own) as read:
        msg_id = viewed.submit("x = 1")
        assert reply_to(viewed, msg_id)["content"]["ename"] == "RelayViewOnly"
        assert relay.ask(OWNER, "DELETE", bobs).status == 204
        assert closed(viewed) == (4403, "the kernel is no longer shared with you")
        # Broken off, not ended: nobody takes it for whole.
        with pytest.raises(http.client.IncompleteRead):
            read.read()
    assert relay.ask(OTHER, "GET", path).status == 404
    with pytest.raises(InvalidStatus):
        relay.open(OTHER, own)
    assert relay.ask(OWNER, "GET", f"{path}/grants").json == []


@contextlib.contextmanager
def following(relay: Peopled, who: str, kernel: str) -> Iterator[http.client.HTTPResponse]:
    """Somebody reads a kernel's past and what comes; it has begun."""
    parts = urlsplit(relay.info.https_url)
    assert parts.hostname is not None
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=30, context=relay.tls
    )
    with contextlib.closing(connection):
        path = f"/alpha/api/kernels/{kernel}/messages?follow=true"
        connection.request("GET", path, headers=relay.headers(who))
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer


@pytest.mark.parametrize(
    "user", ["Token:bob", "-:bob", "token:", ":bob", "%20bob", "bob%20", "t%20k:bob", "x" * 300]
)
def test_who_is_nobody_gets_no_grant(place: Place, user: str) -> None:
    path = f"/alpha/api/kernels/{place.kernel}/grants"
    for method in ("PUT", "DELETE"):
        answer = place.relay.ask(OWNER, method, f"{path}/{user}", {"action": "view"})
        refusal(answer, 400, "Bad request")


@pytest.mark.parametrize(
    "body",
    [{}, {"action": "admin"}, {"action": None}, {"action": ["use"]}, [], "use", b"\xff", b""],
)
def test_what_is_no_grant_is_refused(place: Place, body: Any) -> None:
    path = f"/alpha/api/kernels/{place.kernel}/grants"
    before = place.relay.ask(OWNER, "GET", path).json
    refusal(place.relay.ask(OWNER, "PUT", f"{path}/bob", body), 400, "Bad request")
    assert place.relay.ask(OWNER, "GET", path).json == before


def test_nobody_is_granted_what_is_theirs(place: Place) -> None:
    path = f"/alpha/api/kernels/{place.kernel}/grants/token:ada%20lovelace:1"
    for who in (OWNER, ADMIN):
        refusal(place.relay.ask(who, "PUT", path, {"action": "use"}), 400, "Bad request")


def test_a_grant_is_kept_by_the_next_holder(place: Place, own: str) -> None:
    relay = place.relay
    relay.grant(OWNER, own, "vi", "view")
    record = relay.state / "alpha" / "kernels" / own / "record.json"
    pid = json.loads(record.read_bytes())["holder_pid"]
    os.kill(pid, signal.SIGKILL)
    path = f"/alpha/api/kernels/{own}"
    wait_for("another holder", lambda: json.loads(record.read_bytes())["holder_pid"] != pid)
    ask: Callable[[], Answer] = lambda: relay.ask(VIEWER, "GET", path)  # noqa: E731
    wait_for("an answer", lambda: ask().status == 200)
    with relay.open(VIEWER, own) as viewer:
        msg_id = viewer.submit("x = 1")
        assert reply_to(viewer, msg_id)["content"]["ename"] == "RelayViewOnly"
        assert relay.ask(OWNER, "DELETE", f"{path}/grants/vi").status == 204
        assert closed(viewer)[0] == 4403


# The environment

NASTY: Final = [
    *("$(touch evil)", "`touch evil`", "${HOME}", "$HOME", "$$", "{{ 7*7 }}", "{% raw %}"),
    *("{connection_file}", "{KERNEL_N0}", "%(HOME)s", "%s", "a: b", "- a", "!!python/object:x"),
    *("'", '"', "\\", "\\n", "; touch evil", "| touch evil", "&& touch evil", "*", "~", "#", " "),
    *("<!--", "\u202e", "\u00a0", "-c", "--help", "=", "a=b", "!ls", "%ls"),
]


def test_nothing_in_a_value_is_anything_but_the_value(place: Place) -> None:
    relay = place.relay
    sent = {f"KERNEL_N{number}": value for number, value in enumerate(NASTY)}
    identity = {"KERNEL_USERNAME": "root", "KERNEL_UID": "0", "KERNEL_GID": "0"}
    kernel = relay.begin(OWNER, env={**sent, **identity})
    with relay.open(OWNER, kernel) as channels:
        code = "import os, json; print(json.dumps(dict(os.environ)), os.path.exists('evil'))"
        found, _, evil = channels.execute(code).stdout.rpartition(" ")
    environ = json.loads(found)
    assert {name: environ.get(name) for name in sent} == sent
    assert environ["KERNEL_USERNAME"] == OWNER
    assert not {"KERNEL_UID", "KERNEL_GID"} & environ.keys()
    assert evil == "False\n"
    assert not list(Path(relay.folder).rglob("evil"))
    assert relay.ask(OWNER, "DELETE", f"/alpha/api/kernels/{kernel}").status == 204
