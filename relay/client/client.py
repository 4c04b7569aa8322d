"""The client of one cluster, which starts kernels and connects to them."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from relay.bridge.control import Position
from relay.client import sockets
from relay.client.channels import Channels
from relay.client.delivery_tracker import parse_position
from relay.client.kernel import Kernel
from relay.client.kernel_session import KernelSession
from relay.client.rest import RestClient
from relay.client.settings import Settings
from relay.client.sockets import Socket
from relay.errors import BadRequest
from relay.model import KernelModel, jupyter_time

_LEAVES_TLS: Final = sys.version_info < (3, 12, 7)
"""Whether Python leaks the sockets of broken TLS connections, so that aiohttp must close them; it
warns about that on later versions."""


class RelayClient:
    """One cluster of a relay.

    ``url`` is the cluster's, such as ``https://relay.example:8443/alpha``; ``ws_url`` is used for
    channels, where they have a port of their own. ``ssl`` must trust the relay's CA; by default the
    system's CAs, or ``SSL_CERT_FILE``, are trusted. Raises `BadRequest` for an invalid URL.

    Use it as ``async with RelayClient(…) as relay:``. Leaving the block closes the channels of all
    its kernels; the kernels keep running.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ws_url: str | None = None,
        ssl: SSLContext | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._url = _checked(url, {"http", "https"})
        # The scheme only, since "http" may be part of a name.
        self._ws_url = _checked(ws_url or "ws" + self._url.removeprefix("http"), {"ws", "wss"})
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._ssl = ssl
        self._settings = settings or Settings()
        # Only to spread retries, so it need not be secure.
        self._jitter = random.random
        self._kernels: list[Kernel] = []

    @classmethod
    def from_environment(cls, *, settings: Settings | None = None) -> Self:
        """Make a client from Jupyter's gateway variables, which ``relay up`` prints.

        ``JUPYTER_GATEWAY_URL``, ``JUPYTER_GATEWAY_WS_URL``, ``JUPYTER_GATEWAY_AUTH_TOKEN`` and, for
        the CA, ``SSL_CERT_FILE``. Raises `BadRequest` without the first.
        """
        url = os.environ.get("JUPYTER_GATEWAY_URL")
        if not url:
            msg = "JUPYTER_GATEWAY_URL is not set."
            raise BadRequest(msg)
        return cls(
            url,
            token=os.environ.get("JUPYTER_GATEWAY_AUTH_TOKEN"),
            ws_url=os.environ.get("JUPYTER_GATEWAY_WS_URL"),
            settings=settings,
        )

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(
                ssl=self._ssl or True, limit=0, enable_cleanup_closed=_LEAVES_TLS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each request has its own timeout; a WebSocket stays open for days.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout),
        )
        self._rest = RestClient(self._session, self._url, self._settings, self._jitter)
        return self

    async def __aexit__(self, *_: object) -> None:
        for kernel in list(self._kernels):
            await kernel.close()
        await self._session.close()
        # Without the exception of the block, which the group would wrap in one of its own.
        await self._tasks.__aexit__(None, None, None)

    # Kernels.

    async def start(
        self,
        name: str = "python3",
        *,
        env: Mapping[str, str] | None = None,
        path: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Kernel:
        """Start a kernel, by its kernelspec's name, and wait until it responds.

        ``env``, ``path`` (a folder below the cluster's root) and ``parameters`` (JEP 87) are
        limited by the cluster's settings. One kernel is started, however often the relay fails
        meanwhile. Raises `StartFailed`, `NotFound`, `TooMany`, `Forbidden`, `Unauthorized`,
        `GaveUp`.
        """
        kernel_id = str(uuid.uuid4())
        optional = {"env": env, "path": path, "parameters": parameters}
        given = {name: value for name, value in optional.items() if value is not None}
        body = {"name": name, "kernel_id": kernel_id, **given}
        await self._rest.call("POST", "/api/kernels", body)
        kernel = self._kernel(kernel_id, str(uuid.uuid4()), None)
        # After this reply the session has a position that another process could resume from.
        await kernel.request("kernel_info_request")
        return kernel

    async def connect(
        self, kernel_id: str, *, session_id: str | None = None, last_seq: str | None = None
    ) -> Kernel:
        """Connect to a running kernel.

        By default messages arrive from now on. With the ``session_id`` of another process, and its
        ``position`` as ``last_seq``, they continue exactly there; see `Kernel.resume`. Raises
        `NotFound`, `Forbidden`, `Unauthorized`, `BadRequest`, `GaveUp`.
        """
        start = None if last_seq is None else parse_position(last_seq)
        await self._rest.call("GET", f"/api/kernels/{kernel_id}")
        return self._kernel(kernel_id, session_id or str(uuid.uuid4()), start)

    async def kernels(self) -> list[KernelModel]:
        """List the kernels of the cluster."""
        return msgspec.json.decode(
            await self._rest.call("GET", "/api/kernels"), type=list[KernelModel]
        )

    async def kernelspecs(self) -> dict[str, Any]:
        """Return the kernelspecs as in Jupyter: ``default``, and ``kernelspecs`` by name."""
        found = msgspec.json.decode(await self._rest.call("GET", "/api/kernelspecs"))
        return dict(found)

    def _kernel(self, kernel_id: str, session_id: str, start: Position | None) -> Kernel:
        session = KernelSession(session_id, start, _now, self._settings.requests_in_flight)
        url = f"{self._ws_url}/api/kernels/{kernel_id}/channels"

        async def dial(last_seq: str) -> Socket:
            parameters = {"session_id": session_id, "last_seq": last_seq}
            return await sockets.connect(self._session, url, parameters, self._settings)

        channels = Channels(session, dial, self._settings, self._jitter)
        kernel = Kernel(kernel_id, self._rest, session, channels).open(self._tasks)
        self._kernels = [*(each for each in self._kernels if not each.closed), kernel]
        return kernel


def _checked(url: str, schemes: set[str]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        msg = f"Expected a URL that begins with {' or '.join(sorted(schemes))}://"
        raise BadRequest(msg)
    return url.rstrip("/")


def _now() -> str:
    return jupyter_time(time.time())
