"""REST as clients see it: through the edge, to the agents of two clusters and their kernels."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from relay import __version__
from tests.system.running import Answer, RunningRelay, wait_for
from tests.system.wire import Wire, refusal

ABSENT = "00000000-0000-4000-8000-000000000000"
MODEL_KEYS = {"id", "name", "last_activity", "execution_state", "connections"}
JUPYTER_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
LIMIT = 1024 * 1024
"""limits.body_bytes, by default."""

Ask = Callable[..., Answer]


@pytest.fixture
def ask(relay: RunningRelay) -> Ask:
    """Ask the edge, and look at what every answer must have."""

    def asked(method: str, target: str, body: Any = None, **options: Any) -> Answer:
        answer = relay.request(method, target, body, **options)
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])
        assert answer.headers.get_all("Server") == ["relay"]
        assert not re.search("aiohttp|python/", str(answer.headers), re.IGNORECASE)
        return answer

    return asked


@pytest.fixture
def nothing_starts(ask: Ask) -> Iterator[None]:
    """See that beta has the same kernels before and after."""
    before = ask("GET", "/beta/api/kernels")
    yield
    after = ask("GET", "/beta/api/kernels")
    assert [each["id"] for each in after.json] == [each["id"] for each in before.json]


def check_model(model: Any, kernel_id: str) -> None:
    """What the gateway client and JupyterLab take for a kernel."""
    assert model.keys() == MODEL_KEYS
    assert model["id"] == kernel_id
    assert model["name"] == "python3"
    assert model["execution_state"] in {"starting", "idle", "busy"}
    assert isinstance(model["connections"], int)
    assert JUPYTER_TIME.fullmatch(model["last_activity"])
    active = datetime.strptime(model["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - active).total_seconds()) < 3600


# --- kernels ---


def test_a_kernel_from_its_start_to_its_end(relay: RunningRelay, ask: Ask) -> None:
    started = ask("POST", "/beta/api/kernels", {"name": "python3"})
    assert started.status == 201
    assert started.headers.get_content_type() == "application/json"
    kernel_id = started.json["id"]
    assert UUID.fullmatch(kernel_id)
    assert started.headers["Location"] == f"/beta/api/kernels/{kernel_id}"
    check_model(started.json, kernel_id)
    assert started.json["connections"] == 0

    shown = ask("GET", started.headers["Location"])
    assert shown.status == 200
    check_model(shown.json, kernel_id)
    listed = ask("GET", "/beta/api/kernels")
    assert listed.status == 200
    (model,) = (each for each in listed.json if each["id"] == kernel_id)
    check_model(model, kernel_id)
    # Another cluster knows nothing of it.
    refusal(ask("GET", f"/alpha/api/kernels/{kernel_id}"), 404, "Not found")
    assert kernel_id not in [each["id"] for each in ask("GET", "/alpha/api/kernels").json]

    ended = ask("DELETE", f"/beta/api/kernels/{kernel_id}")
    assert (ended.status, ended.body) == (204, b"")
    refusal(ask("GET", f"/beta/api/kernels/{kernel_id}"), 404, "Not found")
    refusal(ask("DELETE", f"/beta/api/kernels/{kernel_id}"), 404, "Not found")
    assert kernel_id not in [each["id"] for each in ask("GET", "/beta/api/kernels").json]
    folder = relay.state / "beta" / "kernels" / kernel_id
    wait_for("no folder", lambda: not folder.exists())


def test_an_open_websocket_counts_as_a_connection(
    relay: RunningRelay, ask: Ask, kernel: str
) -> None:
    def connections() -> int:
        return int(ask("GET", f"/alpha/api/kernels/{kernel}").json["connections"])

    wait_for("no connection", lambda: connections() == 0)
    with relay.connect("alpha", kernel), relay.connect("alpha", kernel):
        wait_for("two connections", lambda: connections() == 2)
    wait_for("no connection", lambda: connections() == 0)


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_an_interrupt_ends_what_runs(
    relay: RunningRelay, ask: Ask, kernel: str, body: bytes
) -> None:
    with relay.connect("alpha", kernel) as channels:
        asked = threading.Event()

        def interrupt(_: object) -> None:
            if not asked.is_set():
                asked.set()
                answer = ask("POST", f"/alpha/api/kernels/{kernel}/interrupt", body)
                assert (answer.status, answer.body) == (204, b"")

        # Once there is output, it runs.
        code = "import time\nprint('running', flush=True)\ntime.sleep(50)"
        execution = channels.execute(code, seen=lambda e: interrupt(e) if e.stdout else None)
    assert execution.replies[0]["ename"] == "KeyboardInterrupt"


def test_a_restart_keeps_the_id_and_nothing_else(relay: RunningRelay, ask: Ask) -> None:
    kernel_id = relay.start_kernel("alpha", env={"KERNEL_KEPT": "yes"})
    with relay.connect("alpha", kernel_id) as channels:
        channels.execute("x = 1")
    answer = ask("POST", f"/alpha/api/kernels/{kernel_id}/restart", {})
    assert answer.status == 200
    check_model(answer.json, kernel_id)
    with relay.connect("alpha", kernel_id) as channels:
        code = "import os\nprint('x' in dir(), os.environ['KERNEL_KEPT'])"
        assert channels.execute(code).stdout == "False yes\n"
    assert ask("DELETE", f"/alpha/api/kernels/{kernel_id}").status == 204


def test_who_names_no_kernelspec_gets_the_default_one(ask: Ask) -> None:
    answer = ask("POST", "/alpha/api/kernels")
    assert answer.status == 201
    assert answer.json["name"] == "python3"
    assert ask("DELETE", answer.headers["Location"]).status == 204


# --- kernelspecs ---


def check_spec(model: Any) -> None:
    """What JupyterLab validates, and what the gateway client rewrites."""
    assert model["name"] == "python3"
    spec = model["spec"]
    assert spec["language"] == "python"
    assert spec["display_name"]
    assert isinstance(spec["argv"], list)
    assert model["resources"]


def test_kernelspecs(ask: Ask) -> None:
    answer = ask("GET", "/alpha/api/kernelspecs")
    assert answer.status == 200
    assert answer.headers.get_content_type() == "application/json"
    assert answer.json.keys() == {"default", "kernelspecs"}
    assert answer.json["default"] == "python3"
    check_spec(answer.json["kernelspecs"]["python3"])


def test_one_kernelspec_in_each_way_that_clients_ask_for_it(ask: Ask) -> None:
    expected = ask("GET", "/alpha/api/kernelspecs").json["kernelspecs"]["python3"]
    # The last is what the gateway client makes of ?user=U, its endpoint, for a single one.
    for target in ("/alpha/api/kernelspecs/python3", "/alpha/api/kernelspecs?user=U/python3"):
        answer = ask("GET", target)
        assert (answer.status, answer.json) == (200, expected)


def test_kernelspecs_of_a_user_are_all_of_them(ask: Ask) -> None:
    everything = ask("GET", "/alpha/api/kernelspecs").json
    assert ask("GET", "/alpha/api/kernelspecs?user=U").json == everything


@pytest.mark.parametrize("cluster", ["alpha", "beta"])
def test_resources_in_both_styles_of_url(ask: Ask, cluster: str) -> None:
    model = ask("GET", f"/{cluster}/api/kernelspecs/python3").json
    types = {"svg": "image/svg+xml", "png": "image/png"}
    assert len(model["resources"]) >= 2
    for url in model["resources"].values():
        # JupyterLab takes the URL as it is; the gateway client, what is behind /kernelspecs/.
        file = url.split("/kernelspecs/")[-1]
        assert url.startswith(f"/{cluster}/kernelspecs/python3/")
        as_it_is, rebuilt = ask("GET", url), ask("GET", f"/{cluster}/kernelspecs/{file}")
        assert (as_it_is.status, rebuilt.status) == (200, 200)
        assert as_it_is.body == rebuilt.body
        assert as_it_is.headers.get_content_type() == types[Path(file).suffix[1:]]
    png = ask("GET", model["resources"]["logo-64x64"]).body
    assert png.startswith(b"\x89PNG\r\n")
    installed = Path(sys.prefix) / "share/jupyter/kernels/python3/logo-64x64.png"
    assert png == installed.read_bytes()


# --- what holds for every route ---


def routes(kernel_id: str) -> list[str]:
    return [
        "/alpha/api",
        "/alpha/api/kernels",
        f"/alpha/api/kernels/{kernel_id}",
        "/alpha/api/kernelspecs",
        "/alpha/api/kernelspecs/python3",
        "/alpha/kernelspecs/python3/logo-64x64.png",
    ]


def test_the_version(ask: Ask) -> None:
    answer = ask("GET", "/alpha/api")
    assert (answer.status, answer.json) == (200, {"version": __version__})


def test_a_cache_buster_is_ignored(ask: Ask, kernel: str) -> None:
    for target in routes(kernel):
        plain, busted = ask("GET", target), ask("GET", f"{target}?{time.time_ns() // 10**6}")
        assert (plain.status, busted.status) == (200, 200)
        assert plain.body == busted.body


def test_head_is_get_without_a_body(ask: Ask, kernel: str) -> None:
    for target in [*routes(kernel), "/alpha/api/absent", f"/alpha/api/kernels/{ABSENT}"]:
        get, head = ask("GET", target), ask("HEAD", target)
        assert head.status == get.status
        assert head.headers.get_content_type() == get.headers.get_content_type()
        assert head.body == b""


def test_every_request_has_an_id_of_its_own(ask: Ask) -> None:
    answers = [ask("GET", "/alpha/api", headers=None) for _ in range(3)]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 3


def test_a_clients_request_id_is_not_taken_over(relay: RunningRelay, ask: Ask) -> None:
    wanted = "0" * 32
    answer = ask("GET", "/alpha/api", headers={**relay.authorization, "X-Request-Id": wanted})
    assert answer.headers["X-Request-Id"] != wanted


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", f"/alpha/api/kernels/{ABSENT}"),
        ("DELETE", f"/alpha/api/kernels/{ABSENT}"),
        ("POST", f"/alpha/api/kernels/{ABSENT}/interrupt"),
        ("POST", f"/alpha/api/kernels/{ABSENT}/restart"),
        ("GET", "/alpha/api/kernels/not-a-kernels-id"),
        ("GET", "/alpha/api/kernels/four-hyphens-make-five-groups-not-six"),
        ("GET", f"/alpha/api/kernels/{'a' * 57}-b-c-d-e"),
        ("GET", "/alpha/api/kernels/"),
        ("GET", f"/alpha/api/kernels/{ABSENT}/absent"),
        ("GET", "/alpha/api/kernelspecs/absent"),
        ("GET", "/alpha/api/kernelspecs?user=U/absent"),
        ("GET", "/alpha/kernelspecs/absent/logo-64x64.png"),
        ("GET", "/alpha/kernelspecs/python3/absent.png"),
        ("GET", "/alpha/kernelspecs/python3"),
        ("GET", "/alpha/api/absent"),
        ("GET", "/alpha/"),
        ("GET", "/alpha"),
        ("GET", "/"),
        ("GET", "/absent/api/kernels"),
        ("GET", "/Alpha/api/kernels"),
    ],
)
def test_what_is_not_there(ask: Ask, method: str, target: str) -> None:
    refusal(ask(method, target), 404, "Not found")


def test_an_unknown_kernelspec(ask: Ask, nothing_starts: None) -> None:
    message = refusal(ask("POST", "/beta/api/kernels", {"name": "absent"}), 404, "Not found")
    assert "'absent'" in message


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/alpha/api", {"GET", "HEAD"}),
        ("DELETE", "/alpha/api/kernels", {"GET", "HEAD", "POST"}),
        ("PUT", f"/alpha/api/kernels/{ABSENT}", {"GET", "HEAD", "DELETE"}),
        ("GET", f"/alpha/api/kernels/{ABSENT}/interrupt", {"POST"}),
        ("HEAD", f"/alpha/api/kernels/{ABSENT}/restart", {"POST"}),
        ("POST", f"/alpha/api/kernels/{ABSENT}/channels", {"GET"}),
        ("POST", "/alpha/api/kernelspecs", {"GET", "HEAD"}),
        ("DELETE", "/alpha/api/kernelspecs/python3", {"GET", "HEAD"}),
        ("PATCH", "/alpha/kernelspecs/python3/logo-64x64.png", {"GET", "HEAD"}),
        ("PUT", f"/alpha/api/sessions/{ABSENT}", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("TRACE", "/alpha/api", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_a_path_does_not_take(
    ask: Ask, method: str, target: str, allowed: set[str]
) -> None:
    answer = ask(method, target)
    assert answer.status == 405
    if method != "HEAD":
        refusal(answer, 405, "Method not allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed | {"OPTIONS"}


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/alpha/api/kernels", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"/alpha/api/sessions/{ABSENT}", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
    ],
)
def test_what_a_path_takes_can_be_asked(ask: Ask, target: str, allowed: set[str]) -> None:
    answer = ask("OPTIONS", target)
    assert (answer.status, answer.body) == (204, b"")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_what_is_not_there_has_no_options(ask: Ask) -> None:
    refusal(ask("OPTIONS", "/alpha/api/absent"), 404, "Not found")
    refusal(ask("OPTIONS", "/absent/api"), 404, "Not found")


# --- what a kernel is started with ---


def environment_of(relay: RunningRelay, cluster: str, kernel_id: str) -> dict[str, str]:
    with relay.connect(cluster, kernel_id) as channels:
        code = "import os, json\nprint(json.dumps(dict(os.environ)))"
        found: dict[str, str] = json.loads(channels.execute(code).stdout)
        return found


@pytest.mark.guarantee
def test_which_of_a_clients_variables_reach_the_kernel(relay: RunningRelay) -> None:
    longest = "x" * 4094 + "ä"  # 4096 bytes
    sent = {
        "KERNEL_ONE": "1 'two' \"three\" $(id) `id` {{7*7}} ä",
        "KERNEL_EMPTY": "",
        "KERNEL_LONGEST": longest,
        "KERNEL_USERNAME": "somebody-else",
        "PATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "PYTHONSTARTUP": "/evil.py",
        "RELAY_STATE_DIR": "/evil",
        "OTHER": "other",
        "kernel_lower": "lower",
    }
    kernel_id = relay.start_kernel("alpha", env=sent)
    found = environment_of(relay, "alpha", kernel_id)
    for name in ("KERNEL_ONE", "KERNEL_EMPTY", "KERNEL_LONGEST"):
        assert found[name] == sent[name]
    (record,) = json.loads((relay.state / "tokens.json").read_bytes())["tokens"]
    assert found["KERNEL_USERNAME"] == record["user"]
    assert found["PATH"].endswith(relay.environ["PATH"])
    left_out = {"LD_PRELOAD", "PYTHONSTARTUP", "RELAY_STATE_DIR", "OTHER", "kernel_lower"}
    assert not left_out & found.keys()
    assert "/evil" not in str(found)
    # Of the agent's own only what the configuration names.
    assert "XDG_RUNTIME_DIR" in relay.environ
    assert not {name for name in found if name.startswith(("XDG_", "RELAY_", "NOTIFY_", "LISTEN"))}
    assert relay.request("DELETE", f"/alpha/api/kernels/{kernel_id}").status == 204


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"KERNEL_A": "x" * 4097}, "environment.value_bytes"),
        ({"KERNEL_A": "ä" * 2049}, "environment.value_bytes"),
        ({"KERNEL_A": "a\nb"}, "control characters"),
        ({"KERNEL_A": "a\x00b"}, "control characters"),
        ({"KERNEL_A": "a\x1bb"}, "control characters"),
        ({"KERNEL_A": "a\x7fb"}, "control characters"),
        ({"KERNEL_A": 1}, "not a string"),
        ({"KERNEL_A": None}, "not a string"),
        ({"KERNEL_A": ["a"]}, "not a string"),
        ({"KERNEL_A=B": "a"}, "name"),
        ({"KERNEL_A\n": "a"}, "name"),
        ({"": "a"}, "name"),
    ],
)
def test_a_variable_that_no_kernel_gets(
    ask: Ask, nothing_starts: None, env: dict[str, Any], said: str
) -> None:
    answer = ask("POST", "/beta/api/kernels", {"name": "python3", "env": env})
    assert said in refusal(answer, 400, "Bad request")


def test_kernels_that_start_at_the_same_time_do_not_mix(relay: RunningRelay) -> None:
    numbers = range(3)

    def start(number: int) -> dict[str, str]:
        env = {"KERNEL_NUMBER": str(number), f"KERNEL_ONLY_{number}": "here"}
        kernel_id = relay.start_kernel("beta", env=env)
        return environment_of(relay, "beta", kernel_id) | {"id": kernel_id}

    with ThreadPoolExecutor(len(numbers)) as pool:
        found = list(pool.map(start, numbers))
    for number, environment in enumerate(found):
        assert environment["KERNEL_NUMBER"] == str(number)
        only = [name for name in environment if name.startswith("KERNEL_ONLY_")]
        assert only == [f"KERNEL_ONLY_{number}"]
    for environment in found:
        assert relay.request("DELETE", f"/beta/api/kernels/{environment['id']}").status == 204


# --- bodies ---


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"null",
        b"[]",
        b'"python3"',
        b'{"name": 3}',
        b'{"name": "python3", "env": []}',
        b'{"name": "python3", "env": "KERNEL_A=1"}',
        b'{"name": "python3"} {}',
        b'{"name": "\xff"}',
        b'{"name": "' + b"x" * 129 + b'"}',
        b'{"name": "../python3"}',
        b'{"name": "..", "x": ' + b"[" * 100_000,
        b"name=python3",
        b"\x00",
    ],
)
def test_a_body_that_is_none_of_ours(ask: Ask, nothing_starts: None, body: bytes) -> None:
    message = refusal(ask("POST", "/beta/api/kernels", body), 400, "Bad request")
    assert "/" not in message
    assert "Traceback" not in message


def test_a_body_at_the_limit_and_one_beyond(ask: Ask) -> None:
    body = b'{"name": "absent"}'
    # Taken by edge and agent both, which look for its kernelspec.
    refusal(ask("POST", "/alpha/api/kernels", body.ljust(LIMIT)), 404, "Not found")
    answer = ask("POST", "/alpha/api/kernels", body.ljust(LIMIT + 1))
    assert "limits.body_bytes" in refusal(answer, 413, "Too large")


@pytest.mark.parametrize(
    "sent",
    [
        # Judged by its word, before it is sent …
        b"Content-Length: %d\r\n\r\n" % (LIMIT + 1),
        # … and by what comes, where nothing was said.
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (LIMIT + 1) + bytes(LIMIT + 1),
    ],
)
def test_a_body_too_large_is_not_waited_for(relay: RunningRelay, sent: bytes) -> None:
    head = f"POST /alpha/api/kernels HTTP/1.1\r\nHost: {urlsplit(relay.info.https_url).netloc}\r\n"
    token = f"Authorization: token {relay.info.token}\r\n"
    with Wire(relay.info.https_url, relay.tls) as wire:
        wire.send((head + token).encode() + sent)
        assert "limits.body_bytes" in refusal(wire.answer(), 413, "Too large")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_refused(relay: RunningRelay, ask: Ask, encoding: str) -> None:
    headers = {**relay.authorization, "Content-Encoding": encoding}
    # Whatever is in it: this one would be good.
    answer = ask("POST", "/alpha/api/kernels", {"name": "python3"}, headers=headers)
    assert "Compressed" in refusal(answer, 415, "Unsupported media type")


def test_a_kernelspecs_name_is_the_same_in_capitals(ask: Ask) -> None:
    shown = ask("GET", "/beta/api/kernelspecs/Python3")
    assert (shown.status, shown.json["name"]) == (200, "python3")
