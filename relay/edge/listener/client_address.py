"""The client's address of a request, which proxies in between may have to tell."""

from __future__ import annotations

from aiohttp import web

from relay.config import ProxySettings
from relay.edge.listener import proxy_headers
from relay.edge.listener.acceptor import connection_of
from relay.edge.listener.proxy_headers import Networks


class ClientAddresses:
    """Finds clients' addresses, by the header that trusted proxies set."""

    def __init__(self, settings: ProxySettings) -> None:
        self._header = settings.header
        self._trusted = Networks(settings.forwarded)

    def of(self, request: web.BaseRequest) -> str:
        """Return the address of the client that sent ``request``."""
        peer = connection_of(request).address
        values = request.headers.getall(self._header, [])
        return proxy_headers.client_of(peer, self._header, values, self._trusted)
