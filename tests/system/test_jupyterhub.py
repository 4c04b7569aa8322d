"""A real JupyterHub in front of the relay, and beside it."""

from __future__ import annotations

import contextlib
import http
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay import tokenfile
from relay.auth.tokens import TokenStore, generate
from relay.config import UpConfig
from relay.supervisor.secrets import provide
from relay.supervisor.state import StateFolder
from tests.system.channels import Channels, connect
from tests.system.jupyterhub import PREFIX, Hub, config_file, free_port
from tests.system.running import MANY, Answer, RunningRelay, processes_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CACHE: Final = 3.0
"""Seconds that the relay takes the Hub's word for."""
SETTINGS: Final = {
    "cache": CACHE,
    "cache_unknown": 1.0,
    "timeout": 2.0,
    "activity_interval": 1.0,
}
KERNELS: Final = f"{PREFIX}/alpha/api/kernels"
ME: Final = f"{PREFIX}/alpha/api/me"


class Both(NamedTuple):
    """A Hub, and the relay that is its service."""

    hub: Hub
    relay: RunningRelay

    def ask(self, method: str, target: str, body: Any = None, *, token: str) -> Answer:
        """Ask the relay itself."""
        return self.relay.request(method, target, body, headers={"Authorization": f"token {token}"})

    def start_kernel(self, token: str) -> str:
        answer = self.ask("POST", KERNELS, {"name": "python3"}, token=token)
        assert answer.status == http.HTTPStatus.CREATED, answer
        assert answer.headers["Location"] == f"{KERNELS}/{answer.json['id']}"
        return str(answer.json["id"])

    def connect(self, kernel_id: str, token: str, session: str = "s") -> Channels:
        return connect(
            f"{self.relay.info.wss_url}/alpha/api/kernels/{kernel_id}/channels",
            headers={"Authorization": f"token {token}"},
            tls=self.relay.tls_for_threads,
            session=session,
        )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The relay runs on its own; what it must know of the Hub is in its configuration."""
    folder = tmp_path_factory.mktemp("hub")
    ports = str(free_port()), str(free_port())
    config = folder / "up.yaml"
    relay = RunningRelay(("alpha",), ("--config", str(config)), MANY)
    ca = str(relay.state / "pki" / "ca.pem")
    hub = Hub(folder, f"https://127.0.0.1:{ports[0]}", ca)
    (folder / "token").write_text(hub.service_token)
    written = {
        **SETTINGS,
        "api_url": hub.api_url,
        "service_name": "relay",
        "api_token_file": str(folder / "token"),
    }
    config_file(
        folder,
        {
            "base_url": PREFIX,
            "authentication": {"jupyterhub": written},
            "path_tokens": {"max_lifetime": 3600},
            "shared_uid": True,
            "upstream": {"link_ping_interval": 1.0},
        },
    )
    with contextlib.ExitStack() as ending:
        ending.callback(relay.close)
        relay.restart_on(*ports)
        ending.enter_context(hub)
        hub.wait_for_route()
        yield Both(hub, relay)


def refused(answer: Answer) -> str:
    assert answer.status == http.HTTPStatus.UNAUTHORIZED, answer
    return str(answer.json["message"])


def test_two_users_work_on_kernels_of_their_own(both: Both) -> None:
    for name in ("alice", "bob"):
        _, token = both.hub.new_token(name)
        assert both.ask("GET", ME, token=token).json["identity"]["username"] == f"jupyterhub:{name}"
        kernel = both.start_kernel(token)
        with both.connect(kernel, token) as channels:
            done = channels.execute("import os; print(os.environ['KERNEL_USERNAME'])")
            assert done.stdout == f"{name}\n"


def test_the_hubs_proxy_shows_the_relay_under_its_prefix(both: Both) -> None:
    _, token = both.hub.new_token("alice")
    answer = both.hub.through_proxy("POST", KERNELS, {"name": "python3"}, token=token)
    assert answer.status == http.HTTPStatus.CREATED, answer
    where = answer.headers["Location"]
    assert where == f"{KERNELS}/{answer.json['id']}"
    assert both.hub.through_proxy("GET", where, token=token).json["id"] == answer.json["id"]
    url = both.hub.url.replace("http", "ws", 1)
    headers = {"Authorization": f"token {token}"}
    with connect(f"{url}{where}/channels", headers=headers, session="p") as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"


def test_a_token_in_the_path_stands_behind_the_prefix(both: Both) -> None:
    token, record = generate("ann", time.time(), lifetime=600.0, path=True)
    path = both.relay.state / "tokens.json"
    with tokenfile.locked(path):
        tokenfile.write(path, TokenStore((*tokenfile.read(path).records, record)))
    base = f"{PREFIX}/t/{token}/alpha"

    def ask(method: str, target: str, body: Any = None) -> Answer:
        return both.relay.request(method, target, body, headers={})

    wait_for("the token", lambda: all(ask("GET", f"{base}/api").status == 200 for _ in range(12)))
    started = ask("POST", f"{base}/api/kernels", {"name": "python3"})
    assert started.status == http.HTTPStatus.CREATED, started
    where = started.headers["Location"]
    assert where == f"{base}/api/kernels/{started.json['id']}"
    assert ask("GET", where).json["id"] == started.json["id"]
    specs = ask("GET", f"{base}/api/kernelspecs").json["kernelspecs"]
    logo = specs["python3"]["resources"]["logo-64x64"]
    assert logo == f"{base}/kernelspecs/python3/logo-64x64.png"
    assert ask("GET", logo).body.startswith(b"\x89PNG")
    # The same without a token in the path.
    own = both.relay.request("GET", f"{PREFIX}/alpha/api/kernelspecs/python3").json
    logo = own["resources"]["logo-64x64"]
    assert logo == f"{PREFIX}/alpha/kernelspecs/python3/logo-64x64.png"
    assert both.relay.request("GET", logo).body.startswith(b"\x89PNG")
    wrong = ask("PUT", f"{base}/api/kernels")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert ask("DELETE", where).status == http.HTTPStatus.NO_CONTENT
    for target in (f"/t/{token}/alpha/api", f"/t/{token}{PREFIX}/alpha/api", f"{base}{PREFIX}/api"):
        assert ask("GET", target).status == http.HTTPStatus.NOT_FOUND, target
    assert token not in both.relay.log_text()


@pytest.mark.parametrize(
    "target",
    [
        "/alpha/api/kernels",
        "/services/relay",
        "/services/relayx/alpha/api/kernels",
        "/services/alpha/api/kernels",
        "/services/relay/services/relay/alpha/api/kernels",
        "/x/services/relay/alpha/api/kernels",
        "/Services/relay/alpha/api/kernels",
    ],
)
def test_nothing_is_found_beside_the_prefix(both: Both, target: str) -> None:
    _, token = both.hub.new_token("alice")
    assert both.ask("GET", target, token=token).status == http.HTTPStatus.NOT_FOUND


def test_a_prefix_in_disguise_is_no_prefix(both: Both) -> None:
    _, token = both.hub.new_token("alice")
    for target in (
        "/services/%72elay/alpha/api/kernels",
        "//services/relay/alpha/api/kernels",
        "/services/./relay/alpha/api/kernels",
        "/services/x/../relay/alpha/api/kernels",
        "/services%2Frelay/alpha/api/kernels",
    ):
        assert both.ask("GET", target, token=token).status == http.HTTPStatus.BAD_REQUEST


def test_who_may_not_use_the_service_stays_outside(both: Both) -> None:
    _, carol = both.hub.new_token("carol")
    for token in (carol, both.hub.stranger_token):
        message = refused(both.ask("GET", KERNELS, token=token))
        assert "access:services!service=relay" in message


def test_a_token_that_was_made_for_less_stays_outside(both: Both) -> None:
    _, token = both.hub.new_token("alice", scopes=["access:servers!user=alice"])
    assert "access:services!service=relay" in refused(both.ask("GET", KERNELS, token=token))
    _, token = both.hub.new_token("alice", scopes=["access:services!service=relay"])
    assert both.ask("GET", KERNELS, token=token).status == http.HTTPStatus.OK


def test_what_the_hub_does_not_know_stays_outside(both: Both) -> None:
    _, token = both.hub.new_token("alice")
    for wrong in ("", "0" * 32, token[:-1], token.upper() + "x", "a.b.c", "x" * 4000):
        assert "token" in refused(both.ask("GET", KERNELS, token=wrong))
    kernel = both.start_kernel(token)
    with pytest.raises(InvalidStatus, match="401"):
        both.connect(kernel, "0" * 32)


def test_a_service_is_not_the_user_of_its_name(both: Both) -> None:
    _, user = both.hub.new_token("bot")
    for token, name in ((both.hub.bot_token, "service:bot"), (user, "bot")):
        me = both.ask("GET", ME, token=token).json["identity"]
        assert me["username"] == f"jupyterhub:{name}"
        assert both.start_kernel(token)


def test_a_token_of_the_relays_own_goes_on_to_work(both: Both) -> None:
    assert both.relay.request("GET", KERNELS).status == http.HTTPStatus.OK


def test_an_expired_token_is_refused(both: Both) -> None:
    _, token = both.hub.new_token("alice", expires_in=2)
    assert both.ask("GET", KERNELS, token=token).status == http.HTTPStatus.OK
    until_refused(both, token, 2 + CACHE)


def until_refused(both: Both, token: str, seconds: float) -> None:
    """Wait for it; it has to come within ``seconds``, and a moment for the request itself."""
    began = time.monotonic()
    wait_for(
        "401", lambda: both.ask("GET", KERNELS, token=token).status == http.HTTPStatus.UNAUTHORIZED
    )
    assert time.monotonic() - began < seconds + 1


def test_a_token_that_the_hub_revokes_is_refused_when_the_cache_ends(both: Both) -> None:
    token_id, token = both.hub.new_token("alice")
    _, other = both.hub.new_token("alice")
    assert both.ask("GET", KERNELS, token=token).status == http.HTTPStatus.OK
    both.hub.revoke("alice", token_id)
    until_refused(both, token, CACHE)
    assert both.ask("GET", KERNELS, token=other).status == http.HTTPStatus.OK


def test_open_websockets_end_with_the_token_that_opened_them(both: Both) -> None:
    token_id, token = both.hub.new_token("alice")
    _, other = both.hub.new_token("alice")
    kernel = both.start_kernel(token)
    with (
        both.connect(kernel, token, "ending") as ending,
        both.connect(kernel, other, "staying") as staying,
    ):
        assert ending.execute("x = 1").replies
        both.hub.revoke("alice", token_id)
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            drain(ending, 10 * CACHE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4401
        # What the cache holds for, and then the next look.
        assert time.monotonic() - began < 2 * CACHE + 2
        # The kernel lives on, and so do those who came with another token.
        assert staying.execute("print(x)").stdout == "1\n"


def drain(channels: Channels, seconds: float) -> None:
    """Read whatever comes for so long. Raises ``ConnectionClosed``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            channels.receive(timeout=0.2)


def test_users_cannot_see_each_others_kernels(both: Both) -> None:
    _, alice = both.hub.new_token("alice")
    _, bob = both.hub.new_token("bob")
    kernel = both.start_kernel(alice)
    where = f"{KERNELS}/{kernel}"
    assert kernel in [each["id"] for each in both.ask("GET", KERNELS, token=alice).json]
    assert kernel not in [each["id"] for each in both.ask("GET", KERNELS, token=bob).json]
    for method, target in (
        ("GET", where),
        ("DELETE", where),
        ("POST", f"{where}/interrupt"),
        ("POST", f"{where}/restart"),
        ("GET", f"{where}/messages"),
    ):
        assert both.ask(method, target, token=bob).status == http.HTTPStatus.NOT_FOUND, target
    with pytest.raises(InvalidStatus, match="404"):
        both.connect(kernel, bob)
    with both.connect(kernel, alice) as channels:
        assert channels.execute("print(1)").stdout == "1\n"


def test_while_the_hub_is_away_nobody_new_comes_in(both: Both) -> None:
    _, known = both.hub.new_token("alice")
    _, unknown = both.hub.new_token("bob")
    kernel = both.start_kernel(known)
    with both.connect(kernel, known) as channels:
        began = time.monotonic()
        assert both.ask("GET", KERNELS, token=known).status == http.HTTPStatus.OK
        both.hub.kill()
        answer = both.ask("GET", KERNELS, token=unknown)
        assert answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE
        assert int(answer.headers["Retry-After"]) > 0
        # Not even a wrong token is called wrong by who cannot tell.
        answer = both.ask("GET", KERNELS, token="0" * 31)
        assert answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE
        with pytest.raises(InvalidStatus, match="503"):
            both.connect(kernel, unknown)
        # Who was known goes on, as long as the Hub's word is good, and no longer.
        wait_for(
            "503", lambda: both.ask("GET", KERNELS, token=known).status == 503, timeout=CACHE + 5
        )
        assert time.monotonic() - began < CACHE + 2
        # The relay's own tokens have nothing to do with the Hub, nor has a kernel that runs.
        assert both.relay.request("GET", KERNELS).status == http.HTTPStatus.OK
        assert channels.execute("print(2)").stdout == "2\n"
        both.hub.start()
        for token in (known, unknown):
            assert both.ask("GET", KERNELS, token=token).status == http.HTTPStatus.OK
        assert channels.execute("print(3)").stdout == "3\n"


# --- activity ---


def last_activity(both: Both, name: str) -> float:
    """Of a user's default server, in Unix seconds."""
    text = both.hub.user(name)["servers"][""]["last_activity"]
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture(scope="module")
def alices_server(both: Both) -> Both:
    """Alice's server runs, in gateway mode."""
    assert both.hub.ask("POST", "/users/alice/server").status in {201, 202}
    wait_for(
        "alice's server",
        lambda: both.hub.user("alice")["servers"].get("", {}).get("ready"),
        timeout=200.0,
    )
    return both


def grows(both: Both, name: str, for_seconds: float) -> Callable[[], bool]:
    before = last_activity(both, name)
    return lambda: last_activity(both, name) > before + for_seconds


def test_a_cell_that_prints_nothing_keeps_its_users_server_alive(alices_server: Both) -> None:
    """Through the proxy, the user's own server, its gateway client and the relay."""
    both = alices_server
    _, token = both.hub.new_token("alice")
    target = "/user/alice/api/kernels"
    answer = both.hub.through_proxy("POST", target, {"name": "python3"}, token=token)
    assert answer.status == http.HTTPStatus.CREATED, answer
    url = both.hub.url.replace("http", "ws", 1)
    with connect(
        f"{url}{target}/{answer.json['id']}/channels",
        headers={"Authorization": f"token {token}"},
        session="a",
    ) as channels:
        assert channels.execute("import time").replies
        cell = channels.submit("time.sleep(12)")
        time.sleep(3)
        # Its first and last output are seconds away: it is only busy.
        wait_for("activity", grows(both, "alice", 3), timeout=8)
        channels.collect(cell)
        # Nothing goes on any more, with the WebSocket still open.
        time.sleep(3)
        before = last_activity(both, "alice")
        time.sleep(4)
        assert last_activity(both, "alice") == before


def test_the_server_that_is_kept_alive_is_the_one_whose_token_it_is(alices_server: Both) -> None:
    both = alices_server
    token = token_of_server(both, "alice")
    kernel = both.start_kernel(token)
    with both.connect(kernel, token) as channels:
        check = grows(both, "alice", 0)
        assert channels.execute("print(1)").stdout == "1\n"
        wait_for("activity", check, timeout=8)


def token_of_server(both: Both, name: str) -> str:
    """The token that the Hub gave to a user's server."""
    for pid in processes_of(both.hub.folder):
        with contextlib.suppress(OSError):
            pairs = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            environ = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            if environ.get(b"JUPYTERHUB_USER") == name.encode():
                return environ[b"JUPYTERHUB_API_TOKEN"].decode()
    raise AssertionError("no such server runs")


def test_a_server_that_there_is_not_is_no_trouble(both: Both) -> None:
    scopes = ["access:services!service=relay", "access:servers!server=bob/gone"]
    _, token = both.hub.new_token("bob", scopes=scopes)
    kernel = both.start_kernel(token)
    before = both.hub.user("bob")["last_activity"]
    with both.connect(kernel, token) as channels:
        for _ in range(2):
            assert channels.execute("print(1)").stdout == "1\n"
            time.sleep(1.5)
        # Its user works all the same; nobody invents a server.
        wait_for("activity", lambda: both.hub.user("bob")["last_activity"] > before)
        assert both.hub.user("bob")["servers"] == {}
    assert re.search(
        r'relay_edge_hub_requests_total\{outcome="unknown",what="activity"\}', both.relay.metrics()
    )


# --- started by the Hub ---


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The Hub starts the relay, which knows nothing but what the Hub tells it."""
    folder = tmp_path_factory.mktemp("hub")
    ports = str(free_port()), str(free_port())
    # Some think of JUPYTER_PATH.
    config = config_file(
        folder,
        {
            "authentication": {"jupyterhub": {}},
            "environment": {"inherit": ["PATH", "HOME", "TMPDIR", "J*"]},
        },
    )
    relay = RunningRelay(("alpha",), ("--config", config))
    state = StateFolder(relay.state)
    state.create()
    # The Hub's proxy reads the CA when it starts, which is before the relay does.
    provide(state, UpConfig(), time.time())
    hub = Hub(
        folder,
        f"https://127.0.0.1:{ports[0]}",
        str(state.authority[0]),
        command=relay.command(*ports),
        environ=relay.environ,
    )
    try:
        with hub:
            wait_for("the relay", state.status.exists, timeout=200.0)
            hub.wait_for_route()
            yield Both(hub, relay)
    finally:
        relay.end_kernels()
        relay.close()


def test_the_hub_starts_the_relay_and_tells_it_all(managed: Both) -> None:
    assert managed.relay.info.https_url.endswith(PREFIX)
    _, token = managed.hub.new_token("alice")
    answer = managed.hub.through_proxy("GET", ME, token=token)
    assert answer.json["identity"]["username"] == "jupyterhub:alice"
    _, carol = managed.hub.new_token("carol")
    assert "access:services!service=relay" in refused(managed.ask("GET", ME, token=carol))


def test_the_services_token_is_for_the_edge_alone(managed: Both) -> None:
    _, token = managed.hub.new_token("alice")
    kernel = managed.start_kernel(token)
    with managed.connect(kernel, token) as channels:
        code = "import os; print([name for name in os.environ if name.startswith('JUPYTERHUB_')])"
        assert channels.execute(code).stdout == "[]\n"
        assert channels.execute("print(os.environ['TMPDIR'] != '')").stdout == "True\n"
    secret = managed.hub.service_token.encode()
    pids = managed.relay.info.pids
    edges = {pids.supervisor, *pids.edge}
    edges.add(int(Path("/proc", str(pids.edge[0]), "stat").read_text().split()[3]))
    others = {
        pid: arguments
        for pid, arguments in processes_of(managed.relay.folder).items()
        if pid not in edges
    }
    # The agent, the holder and the kernel, at the least.
    assert len(others) >= 3
    for pid, arguments in others.items():
        assert secret not in Path("/proc", str(pid), "environ").read_bytes(), arguments
    assert secret in Path("/proc", str(pids.edge[0]), "environ").read_bytes()


def test_no_token_of_anybodys_is_logged(managed: Both) -> None:
    _, alice = managed.hub.new_token("alice")
    _, carol = managed.hub.new_token("carol")
    for token in (alice, carol):
        managed.ask("GET", KERNELS, token=token)
    log = managed.hub.log_text() + managed.relay.log_text()
    assert "request" in log
    for token in (alice, carol, managed.hub.service_token):
        assert token not in log
