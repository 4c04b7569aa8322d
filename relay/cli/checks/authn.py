"""Checks of authenticators and of trusted proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from relay.cli.checks import files
from relay.cli.checks.finding import Finding, check, is_loopback, warning
from relay.config import AuthenticationSettings, EdgeConfig, UpConfig

_WIDE: Final = {4: 8, 6: 16}
"""Bits of a prefix, by IP version, below which a network holds more than one's own proxies."""


@check(EdgeConfig, UpConfig)
def proxies(config: EdgeConfig | UpConfig) -> Iterator[Finding]:
    """Warn of networks of proxies that others are in too."""
    for name in ("proxy_protocol", "forwarded"):
        for number, written in enumerate(getattr(config.proxies, name)):
            network = ipaddress.ip_network(written)
            if network.prefixlen < _WIDE[network.version]:
                yield warning(
                    f"proxies.{name}.{number}",
                    f"all of {written} is trusted to name a client's address: limits per address"
                    " and the audit log depend on it",
                )


@check(EdgeConfig)
def edge_authentication(config: EdgeConfig) -> Iterator[Finding]:
    """Check the authenticators of an edge."""
    yield from _authentication(config.authentication)
    if config.authentication.path_tokens is not None:
        yield _path_tokens("authentication.path_tokens")


@check(UpConfig)
def up_authentication(config: UpConfig) -> Iterator[Finding]:
    """Check the authenticators of `relay up` besides its own tokens."""
    if config.authentication is not None:
        yield from _authentication(config.authentication)
    if config.path_tokens is not None:
        yield _path_tokens("path_tokens")


def _authentication(settings: AuthenticationSettings) -> Iterator[Finding]:
    section = "authentication"
    for name, certified in settings.mtls.items():
        yield from files.authorities(f"{section}.mtls.{name}.ca", certified.ca)
    for name, issuer in settings.jwt.items():
        if issuer.keys.allow_http:
            yield warning(
                f"{section}.jwt.{name}.keys.allow_http",
                "keys are fetched over plain HTTP: any local process that gets the port in place of"
                " the issuer can then authenticate as anybody",
            )
    hub = settings.jupyterhub
    if hub is not None and hub.api_url is not None:
        parts = urlsplit(hub.api_url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            yield warning(
                f"{section}.jupyterhub.api_url",
                "plain HTTP beyond this machine: whoever is on the network path can read all users'"
                " tokens, and respond in place of the Hub",
            )


def _path_tokens(path: str) -> Finding:
    return warning(
        path,
        "tokens in URLs are stored in logs of proxies and clients: keep their lifetime short",
    )
