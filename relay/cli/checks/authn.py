"""Who is let in, and whose word is taken for where they come from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from relay.cli.checks import files
from relay.cli.checks.finding import Finding, check, is_loopback, warning
from relay.config import AuthenticationSettings, EdgeConfig, UpConfig

_WIDE: Final = {4: 8, 6: 16}
"""Bits of a prefix, by IP version, below which a network is more than one's own proxies."""


@check(EdgeConfig, UpConfig)
def proxies(config: EdgeConfig | UpConfig) -> Iterator[Finding]:
    """Proxies that anybody may be."""
    for name in ("proxy_protocol", "forwarded"):
        for number, written in enumerate(getattr(config.proxies, name)):
            network = ipaddress.ip_network(written)
            if network.prefixlen < _WIDE[network.version]:
                yield warning(
                    f"proxies.{name}.{number}",
                    f"whoever comes from {written} says themselves where they come from: limits of"
                    " addresses and the audit log believe them",
                )


@check(EdgeConfig)
def edge_authentication(config: EdgeConfig) -> Iterator[Finding]:
    """Who comes in at an edge."""
    yield from _authentication(config.authentication)
    if config.authentication.path_tokens is not None:
        yield _path_tokens("authentication.path_tokens")


@check(UpConfig)
def up_authentication(config: UpConfig) -> Iterator[Finding]:
    """Who comes in besides those with a token of the state folder."""
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
                "keys are believed that came over plain HTTP: any process of this machine that"
                " gets the port in the issuer's place lets in whom it likes",
            )
    hub = settings.jupyterhub
    if hub is not None and hub.api_url is not None:
        parts = urlsplit(hub.api_url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            yield warning(
                f"{section}.jupyterhub.api_url",
                "plain HTTP beyond this machine: who is on the way reads everybody's tokens, and"
                " can answer in the Hub's place",
            )


def _path_tokens(path: str) -> Finding:
    return warning(
        path,
        "tokens stand in URLs, which proxies and clients write down: keep their lifetime short",
    )
