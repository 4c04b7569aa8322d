"""An agent's answer to a REST request, as far as it is for the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Final, Self

import aiohttp
import structlog
from aiohttp import hdrs

from relay.edge.upstream.cluster import FAILURES
from relay.errors import AgentTimeout, AgentUnavailable

log = structlog.get_logger(__name__)

CHUNK_BYTES: Final = 64 * 1024
"""Bytes of an answer that are read at once, at the most."""
_ALLOWED_HEADERS: Final = (
    hdrs.CONTENT_TYPE,
    hdrs.ETAG,
    hdrs.LAST_MODIFIED,
    hdrs.CACHE_CONTROL,
    hdrs.RETRY_AFTER,
    hdrs.LOCATION,
)
"""Headers that an agent may set. All others are set by the edge, or left out."""
_RETRY_AFTER: Final = 1


class UpstreamResponse:
    """A status, headers and a body, as a context: on leaving it, the connection is given back.

    The body is read once, by `read` or by `chunks`.
    """

    def __init__(self, cluster: str, response: aiohttp.ClientResponse) -> None:
        self._cluster = cluster
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {
            str(name): response.headers[name]
            for name in _ALLOWED_HEADERS
            if name in response.headers
        }
        self.length = response.content_length
        """Bytes of the body, where the agent gave a Content-Length."""
        transfer_encoding = response.headers.get(hdrs.TRANSFER_ENCODING, "")
        self.is_chunked = transfer_encoding.lower() == "chunked"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.release()

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            AgentUnavailable: the agent broke off.
            AgentTimeout: the agent did not finish in time.
        """
        try:
            return await self._response.read()
        except FAILURES as error:
            raise self._broken_off(error) from error

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, at most `CHUNK_BYTES` at once.

        Raises:
            AgentUnavailable: the agent broke off, or `break_off` was called.
            AgentTimeout: the agent fell silent.
        """
        try:
            while chunk := await self._response.content.read(CHUNK_BYTES):
                yield chunk
        except FAILURES as error:
            log.warning("response_interrupted", cluster=self._cluster, problem=str(error))
            raise self._broken_off(error) from error

    def break_off(self, reason: str) -> None:
        """Have whatever reads the body fail at once, as if the agent had broken off."""
        # Closing the response would leave a pending read waiting.
        self._response.content.set_exception(aiohttp.ClientConnectionError(reason))

    def _broken_off(self, error: Exception) -> AgentUnavailable | AgentTimeout:
        if isinstance(error, TimeoutError):
            msg = f"The cluster {self._cluster!r} did not finish its answer in time."
            return AgentTimeout(msg, retry_after=_RETRY_AFTER)
        msg = f"The cluster {self._cluster!r} broke off its answer."
        return AgentUnavailable(msg, retry_after=_RETRY_AFTER)
