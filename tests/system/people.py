"""A relay that several people use, each with a token of their own."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from relay.auth.tokens import TokenStore, generate
from relay.config import PolicySettings, RuleSettings, UpConfig
from relay.files import private_folder
from tests.system.channels import Channels
from tests.system.running import Answer, RunningRelay


class Peopled(RunningRelay):
    """`relay up --shared-uid` for ``people``. ``rules`` are its policy."""

    def __init__(
        self,
        people: Sequence[str],
        rules: Sequence[RuleSettings],
        clusters: Sequence[str] = ("alpha",),
        options: Sequence[str] = ("--shared-uid",),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(clusters, options, environ)
        made = [generate(name, time.time()) for name in people]
        self._tokens = {name: made[place][0] for place, name in enumerate(people)}
        store = TokenStore(record for _, record in made)
        (private_folder(self.state) / "tokens.json").write_bytes(store.dump())
        path = self.folder / "up.yaml"
        settings = UpConfig(policy=PolicySettings(rules=list(rules)))
        path.write_bytes(msgspec.yaml.encode({"policy": msgspec.to_builtins(settings.policy)}))
        self._up = (*self._up, "--config", str(path))

    def headers(self, name: str | None) -> dict[str, str]:
        """What somebody, or nobody, sends along."""
        return {} if name is None else {"Authorization": f"token {self._tokens[name]}"}

    def ask(
        self,
        name: str | None,
        method: str,
        target: str,
        body: Any = None,
        port: Literal["https", "wss"] = "https",
    ) -> Answer:
        """Ask the edge in somebody's name."""
        return self.request(method, target, body, headers=self.headers(name), port=port)

    def begin(self, name: str, **body: Any) -> str:
        """Start a kernel in somebody's name: its id."""
        answer = self.ask(name, "POST", "/alpha/api/kernels", {"name": "python3", **body})
        assert answer.status == 201, answer
        return str(answer.json["id"])

    def open(
        self,
        name: str | None,
        kernel_id: str,
        session: str | None = None,
        port: Literal["https", "wss"] = "wss",
    ) -> Channels:
        """Open a kernel's channels in somebody's name."""
        session = secrets.token_hex(16) if session is None else session
        return self.connect(
            "alpha", kernel_id, session=session, headers=self.headers(name), port=port
        )

    def grant(self, owner: str, kernel_id: str, user: str, action: str) -> None:
        """Have an owner let somebody else in; ``user`` is as in a path."""
        path = f"/alpha/api/kernels/{kernel_id}/grants/{user}"
        answer = self.ask(owner, "PUT", path, {"action": action})
        assert answer.status == 200, answer
