from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from relay import limits
from relay.agent.holders.admission import AdmissionControl
from relay.config import AgentTls, KernelSettings, LaunchAs
from relay.errors import Forbidden, TooMany
from relay.files import write_atomic
from tests.agent.launching import ADA, BOB, RECORD, Node, agent_config, running_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node on which Ada has two kernels."""
    async with running_node(tmp_path / "state") as node:
        for name in ("k1", "k2"):
            await node.submit(name)
            await node.wait_serving(name)
        yield node


def admission(node: Node, **settings: Any) -> AdmissionControl:
    return AdmissionControl(agent_config(node.state, **settings), node.launcher)


def check(
    admission: AdmissionControl,
    owner: str = str(ADA),
    quota: int | None = None,
    ended: frozenset[str] = frozenset(),
) -> None:
    admission.check(owner, quota, ended)


def test_an_owner_below_the_quota_may_start_one_more(node: Node) -> None:
    control = admission(node)
    check(control, quota=3)
    check(control, quota=None)
    with pytest.raises(TooMany, match=r"You have 2 kernels .*\(quotas\.user_kernels\)"):
        check(control, quota=2)


def test_a_quota_counts_the_owners_own_kernels_only(node: Node) -> None:
    check(admission(node, shared_uid=True), str(BOB), quota=1)


def test_a_full_cluster_has_room_for_nobody(node: Node) -> None:
    control = admission(node, shared_uid=True, kernels=KernelSettings(max_kernels=2))
    for owner in (ADA, BOB):
        with pytest.raises(TooMany, match=r"runs 2 kernels already \(kernels\.max_kernels\)"):
            check(control, str(owner))
    check(admission(node, kernels=KernelSettings(max_kernels=3)))


def test_a_limit_that_was_reached_is_logged_and_counted(node: Node) -> None:
    before = limits.counts["quotas.user_kernels"]
    with capture_logs() as logged, pytest.raises(TooMany):
        check(admission(node), quota=1)
    assert limits.counts["quotas.user_kernels"] == before + 1
    assert [(each["event"], each["setting"], each["limit"]) for each in logged] == [
        ("too_many_kernels", "quotas.user_kernels", 1)
    ]


def test_a_kernel_that_has_ended_takes_no_room(node: Node) -> None:
    check(admission(node), quota=2, ended=frozenset({"k1"}))


def test_a_kernel_that_is_being_ended_takes_no_room(node: Node) -> None:
    ending = msgspec.structs.replace(RECORD, state="ending")
    write_atomic(node.folder("k1").record, msgspec.json.encode(ending))
    check(admission(node), quota=2)


def test_a_folder_that_cannot_be_the_owners_takes_no_room(node: Node) -> None:
    node.runner.mismatched.add("k1")
    check(admission(node), quota=2)


def test_a_folder_without_an_owner_takes_no_room(node: Node) -> None:
    node.folder("k1").request.unlink()
    check(admission(node), quota=2)


def test_one_os_user_runs_the_kernels_of_the_first_owner_only(node: Node) -> None:
    control = admission(node)
    check(control)
    for _ in range(2):
        with pytest.raises(Forbidden, match="shared_uid"):
            check(control, str(BOB))
    # The first owner is remembered, whatever agent asks.
    with pytest.raises(Forbidden):
        check(admission(node), str(BOB))
    check(control)


OTHER_USERS = {
    "user": "relay",
    "launch_as": LaunchAs(),
    "runtime_dir": "run",
    "tls": AgentTls(certificate="agent.pem", key="agent.key", client_ca="ca.pem"),
}


@pytest.mark.parametrize("settings", [{"shared_uid": True}, OTHER_USERS])
def test_owners_share_a_node_where_that_is_set_or_each_has_an_os_user(
    node: Node, settings: dict[str, Any]
) -> None:
    control = admission(node, **settings)
    check(control)
    check(control, str(BOB))
