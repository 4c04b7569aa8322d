"""The relay's REST API, asked again while the relay is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from relay.client import errors
from relay.client.backoff import Backoff
from relay.client.settings import Settings
from relay.client.sockets import of_failure, retry_after
from relay.errors import AgentError, RelayError

_UNCONNECTED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class _Problem(msgspec.Struct, frozen=True):
    """The body of an error."""

    message: str = ""
    reason: str = ""


class Rest:
    """Requests below ``url``, the cluster's."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        settings: Settings,
        dice: Callable[[], float],
    ) -> None:
        self._session = session
        self._url = url
        self._settings = settings
        self._dice = dice

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
    ) -> bytes:
        """The body of the answer. Raises `RelayError`.

        Where the relay is away it is asked again, for ``give_up_after`` seconds, then `GaveUp`.
        What may not be done twice is only asked again where it cannot have arrived.
        """
        backoff = Backoff(self._settings, self._dice)
        while True:
            try:
                return await self._once(method, path, body)
            except AgentError as error:
                # There was no connection: nobody has seen the request.
                unseen = isinstance(error.__cause__, _UNCONNECTED)
                if not (repeatable or unseen):
                    raise
                pause = backoff.pause(asyncio.get_running_loop().time(), error)
            await asyncio.sleep(pause)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        try:
            async with (
                asyncio.timeout(self._settings.request_timeout),
                self._session.request(
                    method, self._url + path, json=body, allow_redirects=False
                ) as answer,
            ):
                content = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise of_failure(error) from error
        if not 200 <= answer.status < 300:  # noqa: PLR2004  (what HTTP calls success)
            raise _error(answer, content)
        return content


def _error(answer: aiohttp.ClientResponse, content: bytes) -> RelayError:
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Something on the way answered in the relay's place.
        problem = _Problem()
    return errors.of_answer(
        answer.status,
        problem.message,
        reason=problem.reason,
        retry_after=retry_after(answer.headers),
    )
