"""Requests to the relay's REST API, repeated while the relay is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from relay.client import errors
from relay.client.backoff import Backoff
from relay.client.settings import Settings
from relay.client.sockets import from_exception, retry_after
from relay.errors import AgentError, RelayError

_UNCONNECTED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class _Problem(msgspec.Struct, frozen=True):
    """The body of an error response."""

    message: str = ""
    reason: str = ""


class RestClient:
    """Requests to the REST API of one cluster; ``url`` is the cluster's."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        settings: Settings,
        jitter: Callable[[], float],
    ) -> None:
        self._session = session
        self._url = url
        self._settings = settings
        self._jitter = jitter

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
    ) -> bytes:
        """Send a request; return the response's body. Raises `RelayError`.

        While the relay is unavailable the request is repeated, for ``give_up_after`` seconds, then
        `GaveUp` is raised. A request that is not ``repeatable`` is only repeated where the relay
        cannot have received it.
        """
        backoff = Backoff(self._settings, self._jitter)
        while True:
            try:
                return await self._once(method, path, body)
            except AgentError as error:
                # Without a connection the relay cannot have received the request.
                unseen = isinstance(error.__cause__, _UNCONNECTED)
                if not (repeatable or unseen):
                    raise
                delay = backoff.delay(asyncio.get_running_loop().time(), error)
            await asyncio.sleep(delay)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        try:
            async with (
                asyncio.timeout(self._settings.request_timeout),
                self._session.request(
                    method, self._url + path, json=body, allow_redirects=False
                ) as response,
            ):
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise from_exception(error) from error
        if not 200 <= response.status < 300:  # noqa: PLR2004  (what HTTP calls success)
            raise _error(response, content)
        return content


def _error(response: aiohttp.ClientResponse, content: bytes) -> RelayError:
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Not from the relay: a proxy on the way responded.
        problem = _Problem()
    return errors.from_response(
        response.status,
        problem.message,
        reason=problem.reason,
        retry_after=retry_after(response.headers),
    )
