"""CORS: which origins may use the relay from a browser, and the headers that say so."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web

from relay.auth.origin import OriginMatch, Origins
from relay.edge.http.context import EarlyResponse
from relay.errors import Forbidden
from relay.http import REQUEST_ID, RESPONSE_HEADERS

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
    """Checks requests by the origin of the page that sends them, whatever their credentials."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    def check(self, request: web.BaseRequest, host: str) -> None:
        """Set the answer's CORS headers.

        A browser may send a client certificate without the user's knowledge, so credentials do not
        help a page of a foreign origin.

        Raises:
            EarlyResponse: it has the answer to a preflight request.
            Forbidden: a page of a foreign origin would change something.
        """
        origins = request.headers.getall(hdrs.ORIGIN, [])
        page = self._origins.classify(origins, host)
        # What an answer's headers are hangs on the origin, as caches must know.
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN} if self._origins.listed else {}
        if page is OriginMatch.LISTED:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origins[0]
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        request[RESPONSE_HEADERS] = headers
        changes = request.method not in _READING or hdrs.UPGRADE in request.headers
        if page is OriginMatch.FOREIGN and changes:
            log.info("origin_refused", origin=origins[0])
            raise Forbidden("Pages of this origin may not use the relay (origins).")
        if page is OriginMatch.LISTED and _is_preflight(request):
            # It shows no credential, whoever asks, so it is told nothing that hangs on one.
            raise EarlyResponse(web.Response(status=HTTPStatus.NO_CONTENT, headers=_PREFLIGHT))


def _is_preflight(request: web.BaseRequest) -> bool:
    """Whether a browser asks if it may send a page's request (Fetch standard, CORS-preflight)."""
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )
