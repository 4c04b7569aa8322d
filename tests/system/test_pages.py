"""Pages of several origins in a real browser, each with a token, before one relay."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest

from tests.system.echo import KERNEL, echoing
from tests.system.javascript import NotInstalled, install_chromium
from tests.system.recorder import Watched, watched
from tests.system.running import wait_for
from tests.system.wire import HANDSHAKE, Wire, refusal

pytestmark = pytest.mark.timeout(300)

# What a page can try: each ends in a word.
PAGE: Final = """<!doctype html><script>
const {https, wss, token, kernel} = SETTINGS;
const authorization = {Authorization: `Bearer ${token}`};
const fetched = async (path, options) => {
  try {
    const answer = await fetch(https + path, options);
    if (answer.type === 'opaque') return 'opaque';
    const id = answer.headers.get('X-Request-Id') ? ' with an id' : '';
    return `${answer.status}${id}`;
  } catch { return 'blocked'; }
};
const opened = path => new Promise(done => {
  const socket = new WebSocket(wss.replace('https', 'wss') + path);
  socket.onopen = () => socket.send('hello');
  socket.onmessage = event => { done(`heard ${event.data}`); socket.close(); };
  socket.onerror = () => done('refused');
});
const json = {...authorization, 'Content-Type': 'application/json'};
const run = async () => ({
  read: await fetched('/alpha/api', {headers: authorization}),
  refused: await fetched('/alpha/api', {}),
  health: await fetched('/healthz', {}),
  start: await fetched('/alpha/api/kernels', {method: 'POST', headers: json, body: '{}'}),
  remove: await fetched('/alpha/api/kernels/a-a-a-a-a', {method: 'DELETE', headers: authorization}),
  cookies: await fetched('/alpha/api', {headers: authorization, credentials: 'include'}),
  simple: await fetched('/alpha/api/kernels', {method: 'POST', mode: 'no-cors', body: '{}'}),
  socket: await opened(`${kernel}?token=${token}`)
});
run().then(told => fetch('/told', {method: 'POST', body: JSON.stringify(told)}));
</script>"""


class _Handler(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        page = PAGE.replace("SETTINGS", json.dumps(self.server.settings)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.told = json.loads(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


class Page(ThreadingHTTPServer):
    """An origin with one page, which tells what came of all that it tried."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.settings: dict[str, str] = {}
        self.told: dict[str, str] | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def visit(self, edge: Watched) -> dict[str, str]:
        """What the page tells when a browser has it."""
        self.told = None
        self.settings = {
            "https": edge.url,
            "wss": edge.wss,
            "token": edge.token,
            "kernel": KERNEL,
        }
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            argv = [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", f"--user-data-dir={profile}"),
                # Whose certificate it is, is not asked here.
                *("--ignore-certificate-errors", "--remote-debugging-port=0", self.origin),
            ]
            browser = subprocess.Popen(
                argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                return wait_for("the page", lambda: self.told, 120.0)
            finally:
                browser.terminate()
                browser.wait(20)


@contextlib.contextmanager
def page() -> Iterator[Page]:
    with Page() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def origins() -> Iterator[tuple[Page, Page, Watched]]:
    """A page of a listed origin, one of another, and the relay."""
    with (
        page() as listed,
        page() as foreign,
        echoing() as agent,
        watched(agent, origins=[listed.origin]) as edge,
    ):
        yield listed, foreign, edge


@pytest.fixture(scope="module")
def browser() -> None:
    try:
        install_chromium()
    except NotInstalled as error:
        pytest.skip(str(error))
    assert shutil.which("chromium")


@pytest.mark.usefixtures("browser")
def test_a_listed_page_reads_and_opens(origins: tuple[Page, Page, Watched]) -> None:
    listed, _, edge = origins
    assert listed.visit(edge) == {
        "read": "200 with an id",
        "refused": "401 with an id",
        "health": "200 with an id",
        "start": "200 with an id",
        "remove": "200 with an id",
        # Cookies are none of it, whatever a page wishes.
        "cookies": "blocked",
        # Without a header of its own it has no token either.
        "simple": "opaque",
        "socket": "heard hello",
    }


@pytest.mark.usefixtures("browser")
def test_a_foreign_page_reads_and_opens_nothing(origins: tuple[Page, Page, Watched]) -> None:
    _, foreign, edge = origins
    assert foreign.visit(edge) == {
        **dict.fromkeys(("read", "refused", "health", "start", "remove", "cookies"), "blocked"),
        "simple": "opaque",
        "socket": "refused",
    }
    refused = [line for line in edge.edge.lines if line["event"] == "origin_refused"]
    # The WebSocket and the request that asks nobody; the others were not even sent.
    assert {line["origin"] for line in refused} == {foreign.origin}


def ask(edge: Watched, url: str, method: str, path: str, *lines: str) -> Any:
    head = [f"{method} {path} HTTP/1.1", "Host: relay:8443", *lines, ""]
    with Wire(url, edge.tls) as wire:
        wire.send("\r\n".join(head).encode() + b"\r\n")
        return wire.answer(method)


@pytest.mark.parametrize("port", ["url", "wss"])
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ([], 101),
        (["Origin: https://relay:8443"], 101),
        (["Origin: LISTED"], 101),
        (["origin:LISTED  "], 101),
        (["Origin: FOREIGN"], 403),
        (["Origin: null"], 403),
        (["Origin:"], 403),
        (["Origin: LISTED, LISTED"], 403),
        (["Origin: LISTED", "Origin: LISTED"], 403),
        (["Origin: LISTED", "Origin: FOREIGN"], 403),
        (["Origin: LISTED/"], 403),
        (["Origin: LISTED.evil"], 403),
        (["Origin: http://relay:8443"], 403),
        (["Origin: https://relay"], 403),
        (["Origin: https://relay:8443.evil"], 403),
        (["Origin: FOREIGN", "Sec-Fetch-Site: same-origin"], 403),
        (["Origin: FOREIGN", "X-Forwarded-Host: FOREIGN"], 403),
        (["Origin: FOREIGN", "Forwarded: host=FOREIGN"], 403),
    ],
)
def test_whose_websocket_opens(
    origins: tuple[Page, Page, Watched], port: str, said: list[str], status: int
) -> None:
    listed, foreign, edge = origins
    lines = [
        each.replace("LISTED", listed.origin).replace("FOREIGN", foreign.origin) for each in said
    ]
    upgrade = HANDSHAKE.decode().strip().split("\r\n")
    url = edge.url if port == "url" else edge.wss
    answer = ask(edge, url, "GET", f"{KERNEL}?token={edge.token}", *lines, *upgrade)
    assert answer.status == status
    if status == 403:
        refusal(answer, 403, "Forbidden")
        # Who has no token hears the same, and nobody hears 101.
        for token in ("", "?token=relay_wrong"):
            again = ask(edge, url, "GET", KERNEL + token, *lines, *upgrade)
            refusal(again, 403, "Forbidden")


def test_a_preflight_tells_the_same_of_everything(origins: tuple[Page, Page, Watched]) -> None:
    listed, foreign, edge = origins
    method = "Access-Control-Request-Method: POST"
    said = set()
    for path in ("/alpha/api/kernels", "/absent/api", "/", "/healthz", "/metrics", "/alpha/tree"):
        answer = ask(edge, edge.url, "OPTIONS", path, f"Origin: {listed.origin}", method)
        assert (answer.status, answer.body) == (204, b"")
        headers = dict(answer.headers)
        del headers["X-Request-Id"], headers["Date"]
        assert headers["Access-Control-Allow-Origin"] == listed.origin
        assert headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in headers
        said.add(json.dumps(headers, sort_keys=True))
        for origin in (foreign.origin, "null", "*", f"{listed.origin}, {listed.origin}"):
            answer = ask(edge, edge.url, "OPTIONS", path, f"Origin: {origin}", method)
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
            assert answer.status in {200, 401, 404}
    assert len(said) == 1
