"""A real OpenID provider (npm's oidc-provider), which signs, publishes, rotates and goes away.

with Provider(folder) as provider:
    token = provider.token("alice")
    provider.publish("two", "one")  # signs with the first of its keys
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import socket
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests import jwts
from tests.system import javascript
from tests.system.running import Answer, environment, http_request

SECRET: Final = "no-secret-but-long-enough"
CLIENTS: Final = {"alice": ["staff"], "bob": []}
"""Its clients, which are users here, and their groups."""


@functools.cache
def _key(kid: str) -> dict[str, Any]:
    private = rsa.generate_private_key(65537, 2048)
    written = RSAAlgorithm.to_jwk(private, as_dict=True)
    # The provider publishes this as it is, and what it publishes does not sign.
    del written["key_ops"]
    return {**written, "kid": kid, "use": "sig"}


def _free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


class Provider:
    """The provider, at a port and with a CA that stay its own however often it is started."""

    def __init__(self, folder: Path, *kids: str) -> None:
        javascript.install()
        self._folder = folder
        self._kids = kids
        self._process: subprocess.Popen[str] | None = None
        port = _free_port()
        self.url = f"https://localhost:{port}"
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        self.ca = str(folder / "provider-ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        certificate.cert_chain_pems[0].write_to_path(str(folder / "provider.pem"))
        certificate.private_key_pem.write_to_path(str(folder / "provider.key"))
        self._settings = {
            "issuer": self.url,
            "port": port,
            "certificate": str(folder / "provider.pem"),
            "key": str(folder / "provider.key"),
            "clients": CLIENTS,
            "secret": SECRET,
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "provider.log").open("a") as log:
            self._process = subprocess.Popen(
                ["node", "oidc.mjs"],
                cwd=javascript.FOLDER,
                env=environment(self._folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._say({**self._settings, "keys": [_key(kid) for kid in self._kids]})

    def kill(self) -> None:
        """SIGKILL, as an outage."""
        assert self._process is not None
        with self._process as process:
            process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def publish(self, *kids: str) -> None:
        """Have these keys from now on, and sign with the first."""
        self._kids = kids
        self._say([_key(kid) for kid in kids])

    def asked(self, path: str) -> int:
        """How often this was asked for since it was started."""
        return int(self._say(None).get(path, 0))

    def fetches(self) -> int:
        """How often its keys were fetched since it was started."""
        return self.asked("/jwks")

    def public_pem(self, kid: str) -> bytes:
        """What everybody knows of a key."""
        private = RSAAlgorithm.from_jwk(_key(kid))
        assert isinstance(private, rsa.RSAPrivateKey)
        return jwts.public_pem(private)

    def token(self, client: str, resource: str = "urn:relay") -> str:
        """An access token of a client's own."""
        answer = self._ask(
            "/token",
            {"grant_type": "client_credentials", "resource": resource, "scope": "kernels"},
            client,
        )
        assert answer.status == 200, answer
        return str(answer.json["access_token"])

    def _ask(self, path: str, form: Mapping[str, str], client: str) -> Answer:
        basic = base64.b64encode(f"{client}:{SECRET}".encode()).decode()
        headers = {
            "Authorization": f"Basic {basic}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode(form).encode()
        tls = ssl.create_default_context(cafile=self.ca)
        return http_request(self.url, "POST", path, body, headers=headers, tls=tls)

    def _say(self, line: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n" if line is None else json.dumps(line) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._folder / "provider.log").read_text()
        found: dict[str, Any] = json.loads(answer)
        return found
