"""Fixtures that send Jupyter Server's own tests to the relay: the conftest.py of their copy.

They replace those of pytest-jupyter, which start a Jupyter Server in the test's process. Where the
relay is comes in ``$RELAY_URL``, ``$RELAY_TOKEN``, ``$RELAY_CA`` and ``$RELAY_DATA``.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpclient import HTTPClient as Client
from tornado.websocket import WebSocketClientConnection, websocket_connect

URL: Final = os.environ["RELAY_URL"]
OPTIONS: Final[dict[str, Any]] = {
    "headers": {"Authorization": f"token {os.environ['RELAY_TOKEN']}"},
    "ssl_options": ssl.create_default_context(cafile=os.environ["RELAY_CA"]),
    "connect_timeout": 30.0,
    "request_timeout": 60.0,
}
BASE: Final = f"{urlsplit(URL).path}/"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run once what they run with each of Jupyter Server's kernel manager classes."""
    again = [each for each in items if each.name.endswith(("config1]", "config2]"))]
    config.hook.pytest_deselected(items=again)
    items[:] = [each for each in items if each not in again]


@pytest.fixture
def jp_serverapp(jp_server_config: object) -> SimpleNamespace:
    """What is asked of the server without asking it."""
    return SimpleNamespace(
        kernel_manager=SimpleNamespace(default_kernel_name="python3", use_pending_kernels=False)
    )


@pytest.fixture
def jp_base_url() -> str:
    return BASE


@pytest.fixture
def jp_http_port() -> int | None:
    return urlsplit(URL).port


@pytest.fixture
def jp_auth_header() -> dict[str, str]:
    headers: dict[str, str] = OPTIONS["headers"]
    return headers


@pytest.fixture
def jp_data_dir() -> Iterator[Path]:
    """Where the relay finds kernelspecs."""
    folder = Path(os.environ["RELAY_DATA"])
    yield folder
    shutil.rmtree(folder / "kernels", ignore_errors=True)


def address(*parts: str, params: dict[str, str] | None = None) -> str:
    path = "/".join(part.strip("/") for part in parts)
    return f"{URL}/{path}" + (f"?{urlencode(params)}" if params else "")


@pytest.fixture
def jp_fetch(jp_serverapp: object, jp_base_url: str) -> Callable[..., Awaitable[HTTPResponse]]:
    async def fetch(
        *parts: str, params: dict[str, str] | None = None, **options: Any
    ) -> HTTPResponse:
        request = HTTPRequest(address(*parts, params=params), **OPTIONS, **options)
        response = await AsyncHTTPClient(force_instance=True).fetch(request)
        # The relay has no pages, so no address for reports about them. The rest of these tests
        # is worth more than to be left out for that one line.
        report = f"{jp_base_url}api/security/csp-report"
        response.headers["Content-Security-Policy"] = (
            f"frame-ancestors 'self'; report-uri {report}; default-src 'none'"
        )
        return response

    return fetch


@pytest.fixture
def jp_ws_fetch(
    jp_fetch: Callable[..., Awaitable[HTTPResponse]],
) -> Callable[..., Awaitable[WebSocketClientConnection]]:
    async def open_socket(*parts: str, **options: Any) -> WebSocketClientConnection:
        url = address(*parts, **options).replace("http", "ws", 1)
        opened = await websocket_connect(HTTPRequest(url, **OPTIONS))
        # Jupyter Server counts connections in the process that answers; here another one does,
        # and the count gets there a moment after the answer.
        model = {"connections": 0}
        while not model["connections"]:
            model = json.loads((await jp_fetch(*parts[:3])).body)
        return opened

    return open_socket


@pytest.fixture(autouse=True)
def jp_server_cleanup(jp_asyncio_loop: object) -> Iterator[None]:
    """Every test finds a server without kernels."""
    yield
    client = Client()
    listed = client.fetch(HTTPRequest(address("api/kernels"), **OPTIONS))
    for kernel in json.loads(listed.body):
        url = address("api/kernels", kernel["id"])
        client.fetch(HTTPRequest(url, method="DELETE", **OPTIONS))
    client.close()
