"""The way in: a cluster of a relay, and its kernels."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from ssl import SSLContext
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from relay.bridge.records import Position
from relay.client import sockets
from relay.client.channels import Channels
from relay.client.delivery_tracker import parse_position
from relay.client.kernel import Kernel
from relay.client.kernel_session import KernelSession
from relay.client.rest import Rest
from relay.client.settings import Settings
from relay.client.sockets import Socket
from relay.errors import BadRequest
from relay.model import KernelModel

_LEAVES_TLS: Final = sys.version_info < (3, 12, 7)
"""Whether Python keeps the sockets of TLS connections that broke: aiohttp then closes them, and
warns where it need not."""


class RelayClient:
    """One cluster of a relay.

    ``url`` is the cluster's, as in ``https://relay.example:8443/alpha``; ``ws_url`` that of its
    channels, where they have a port of their own. ``ssl`` trusts the relay's CA; by default the
    system's, or ``SSL_CERT_FILE``. Raises `BadRequest` for what is no URL.

    To be used as ``async with RelayClient(…) as relay:``. Leaving it closes all its kernels'
    channels, and lets the kernels live.
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
        # The scheme alone: "http" may be part of a name.
        self._ws_url = _checked(ws_url or "ws" + self._url.removeprefix("http"), {"ws", "wss"})
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._ssl = ssl
        self._settings = settings or Settings()
        # Scattered, not secret.
        self._dice = random.random
        self._kernels: list[Kernel] = []

    @classmethod
    def from_environment(cls, *, settings: Settings | None = None) -> Self:
        """As Jupyter is told of a gateway, in the variables that ``relay up`` prints.

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
            # Each call has its own bound; a WebSocket stays for days.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout),
        )
        self._rest = Rest(self._session, self._url, self._settings, self._dice)
        return self

    async def __aexit__(self, *_: object) -> None:
        for kernel in list(self._kernels):
            await kernel.close()
        await self._session.close()
        # Without what the block raised: the group would wrap it in one of its own.
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
        """Start a kernel, by its kernelspec's name, and wait until it answers.

        ``env``, ``path`` (a folder below the cluster's root) and ``parameters`` (JEP 87) are as the
        cluster allows them. One kernel is started, however often the relay fails meanwhile. Raises
        `StartFailed`, `NotFound`, `TooMany`, `Forbidden`, `Unauthorized`, `GaveUp`.
        """
        kernel_id = str(uuid.uuid4())
        optional = {"env": env, "path": path, "parameters": parameters}
        given = {name: value for name, value in optional.items() if value is not None}
        body = {"name": name, "kernel_id": kernel_id, **given}
        await self._rest.call("POST", "/api/kernels", body)
        kernel = self._kernel(kernel_id, str(uuid.uuid4()), None)
        # From here on there is a position, whatever happens to this process.
        await kernel.request("kernel_info_request")
        return kernel

    async def connect(
        self, kernel_id: str, *, session_id: str | None = None, last_seq: str | None = None
    ) -> Kernel:
        """A kernel that runs already.

        Without more it is heard from now on. With the ``session_id`` of another process, and that
        one's ``position`` as ``last_seq``, it goes on exactly there; see `Kernel.resume`. Raises
        `NotFound`, `Forbidden`, `Unauthorized`, `BadRequest`, `GaveUp`.
        """
        start = None if last_seq is None else parse_position(last_seq)
        await self._rest.call("GET", f"/api/kernels/{kernel_id}")
        return self._kernel(kernel_id, session_id or str(uuid.uuid4()), start)

    async def kernels(self) -> list[KernelModel]:
        """The kernels of the cluster."""
        return msgspec.json.decode(
            await self._rest.call("GET", "/api/kernels"), type=list[KernelModel]
        )

    async def kernelspecs(self) -> dict[str, Any]:
        """What can be started, as Jupyter shows it: ``default``, and ``kernelspecs`` by name."""
        found = msgspec.json.decode(await self._rest.call("GET", "/api/kernelspecs"))
        return dict(found)

    def _kernel(self, kernel_id: str, session_id: str, start: Position | None) -> Kernel:
        conversation = KernelSession(session_id, start, _now, self._settings.requests_in_flight)
        url = f"{self._ws_url}/api/kernels/{kernel_id}/channels"

        async def dial(last_seq: str) -> Socket:
            parameters = {"session_id": session_id, "last_seq": last_seq}
            return await sockets.connect(self._session, url, parameters, self._settings)

        channels = Channels(conversation, dial, self._settings, self._dice)
        kernel = Kernel(kernel_id, self._rest, conversation, channels).open(self._tasks)
        self._kernels = [*(each for each in self._kernels if not each.closed), kernel]
        return kernel


def _checked(url: str, schemes: set[str]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        msg = f"A URL is wanted that begins with {' or '.join(sorted(schemes))}://"
        raise BadRequest(msg)
    return url.rstrip("/")


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
