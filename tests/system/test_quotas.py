"""How many kernels there may be, counted by agents that share a folder; and of how many users."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from relay import pki
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket, TicketSigner
from relay.config import AgentConfig, KernelSettings, ListenSettings
from relay.model import Principal
from tests.system.running import Answer, environment, http_request, wait_for
from tests.system.separate import Separate

ADA, BOB = Principal("token", "ada"), Principal("hub", "ada")
QUOTA: Final = 2
LIMIT: Final = 3

pytestmark = pytest.mark.timeout(300)


class Node(NamedTuple):
    """Agents with one state folder."""

    agents: tuple[Separate, ...]
    signer: TicketSigner

    def ask(
        self,
        agent: int,
        who: Principal,
        method: str,
        path: str,
        kernel: str,
        quota: int | None = None,
    ) -> Answer:
        ticket = Ticket(
            principal=who,
            cluster="alpha",
            kernel=kernel,
            rights=Rights(dict.fromkeys(Action)),
            max_kernels=quota,
            request_id="0" * 32,
        )
        signed = self.signer.sign(ticket, time.time(), 60.0)
        url = f"http://127.0.0.1:{self.agents[agent].ready['port']}"
        headers = {"Authorization": f"Bearer {signed}"}
        body = {"name": "python3"} if method == "POST" else None
        return http_request(url, method, path, body, headers=headers)

    def start(self, agent: int, who: Principal, quota: int | None = None) -> Answer:
        kernel = str(uuid.uuid4())
        return self.ask(agent, who, "POST", "/api/kernels", kernel, quota)

    def end(self, agent: int, who: Principal, kernel: str) -> None:
        path = f"/api/kernels/{kernel}"
        assert self.ask(agent, who, "DELETE", path, kernel).status == 204

    def start_at_once(self, starts: list[tuple[int, Principal]], quota: int | None) -> Any:
        with ThreadPoolExecutor(len(starts)) as pool:
            asked = [pool.submit(self.start, *each, quota) for each in starts]
            return [each.result() for each in asked]


@pytest.fixture(params=[True, False], ids=["shared uid", "one user"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    environ = environment(tmp_path)
    keys = pki.new_ticket_keys()
    (tmp_path / "ticket.pub").write_bytes(keys.public)
    agents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        settings = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=0),
            state_dir=str(tmp_path / "state"),
            ticket_keys=[str(tmp_path / "ticket.pub")],
            kernels=KernelSettings(max_kernels=LIMIT),
            shared_uid=request.param,
        )
        agents.append(Separate(settings, folder, environ))
    with agents[0], agents[1]:
        yield Node(tuple(agents), TicketSigner(keys.private))


def said(answers: list[Answer]) -> Counter[str]:
    """What became of each start: 201, or the setting that it failed for."""
    settings = "quotas.user_kernels", "kernels.max_kernels"
    return Counter(
        "201"
        if each.status == 201
        else next(name for name in settings if name in each.json["message"])
        for each in answers
    )


@pytest.mark.parametrize("node", [True], indirect=True)
def test_limits_are_exact_whoever_counts(node: Node) -> None:
    answers = node.start_at_once([(number % 2, ADA) for number in range(8)], QUOTA)
    assert said(answers) == {"201": QUOTA, "quotas.user_kernels": 6}
    assert {each.status for each in answers} == {201, 403}
    # Somebody else has a quota of their own, and the cluster one for all.
    others = node.start_at_once([(number % 2, BOB) for number in range(4)], QUOTA)
    assert said(others) == {"201": LIMIT - QUOTA, "kernels.max_kernels": 3}
    started = {each.json["id"]: ADA for each in answers if each.status == 201}
    started |= {each.json["id"]: BOB for each in others if each.status == 201}
    # The same again is none too many.
    mine = next(kernel for kernel, who in started.items() if who is ADA)
    assert node.ask(1, ADA, "POST", "/api/kernels", mine, QUOTA).status == 201
    # One that is ended makes room at once, at the agent that knows nothing of it too.
    node.end(0, ADA, mine)
    del started[mine]
    answer = node.start(1, ADA, QUOTA)
    assert answer.status == 201, answer
    started[answer.json["id"]] = ADA
    refusal_of_both = [node.start(number, ADA, QUOTA) for number in range(2)]
    assert {each.status for each in refusal_of_both} == {403}
    for kernel, who in started.items():
        node.end(1, who, kernel)
    state = Path(node.agents[0].log.parent.parent / "state/alpha/kernels")
    wait_for("no folder", lambda: not list(state.iterdir()))


@pytest.mark.parametrize("node", [False], indirect=True)
def test_one_uid_is_one_users(node: Node) -> None:
    first = node.start(0, ADA)
    assert first.status == 201
    for agent in range(2):
        answer = node.start(agent, BOB)
        assert (answer.status, answer.json["reason"]) == (403, "Forbidden")
        for needed in ("shared_uid", "--shared-uid"):
            assert needed in answer.json["message"]
        assert "ada" not in answer.json["message"]
    second = node.start(1, ADA)
    assert second.status == 201
    for answer in (first, second):
        node.end(0, ADA, answer.json["id"])
    # Files of the first are there still.
    assert node.start(0, BOB).status == 403
