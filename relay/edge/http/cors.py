"""CORS: which origins may use the relay from a browser, and the headers that say so."""

from __future__ import annotations

from typing import Final

import structlog
from aiohttp import hdrs, web

from relay.auth.origin import OriginMatch, Origins
from relay.errors import Forbidden
from relay.http import ANSWER_HEADERS, REQUEST_ID

log = structlog.get_logger(__name__)

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing, so that a page learns and does nothing by them."""
_PREFLIGHT: Final = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST, PUT, PATCH, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}
_EXPOSED: Final = f"{hdrs.LOCATION}, {hdrs.RETRY_AFTER}, {REQUEST_ID}"


class CorsPolicy:
    """Judges a request by the page that makes it, whoever that page's user is."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    def judge(self, request: web.BaseRequest, host: str) -> web.Response | None:
        """Say what the answer's headers are; the whole answer to a browser that asks beforehand.

        Raises `Forbidden` for a page that may not do such a thing. Where a browser shows a
        certificate by itself, the page it does so for has asked nobody.
        """
        origins = request.headers.getall(hdrs.ORIGIN, [])
        page = self._origins.judge(origins, host)
        # What an answer's headers are hangs on the origin, as caches must know.
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN} if self._origins.listed else {}
        if page is OriginMatch.LISTED:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origins[0]
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        request[ANSWER_HEADERS] = headers
        changes = request.method not in _READING or hdrs.UPGRADE in request.headers
        if page is OriginMatch.FOREIGN and changes:
            log.info("page_refused", origin=origins[0])
            raise Forbidden("Pages of this origin may not use the relay (origins).")
        if page is OriginMatch.LISTED and _is_preflight(request):
            # It shows no credential, whoever asks, so it is told nothing that hangs on one.
            return web.Response(status=204, headers=_PREFLIGHT)
        return None


def _is_preflight(request: web.BaseRequest) -> bool:
    """Whether a browser asks if it may send a page's request (Fetch standard, CORS-preflight)."""
    return request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
