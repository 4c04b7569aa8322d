"""The parts of a worker that need no process; system tests run workers as a whole."""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from relay import limits, pki
from relay.auth.audit import AuditNote
from relay.auth.policy import Action
from relay.auth.tokens import TokenStore, generate
from relay.config import (
    AuthenticationSettings,
    ClusterSettings,
    ConnectionSettings,
    EdgeConfig,
    EdgeLimits,
    PolicySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
)
from relay.connections import HeadLimits, Timeouts
from relay.edge import worker
from relay.edge.ipc.audit_file import WriteNote
from relay.edge.ipc.client import CallError
from relay.edge.worker import Secrets
from relay.metrics import EdgeMetrics
from tests.virtualtime import settle


@pytest.fixture
def config(tmp_path: Path) -> EdgeConfig:
    """An edge's settings, with every file that they name."""
    now = time.time()
    pair = pki.new_server(pki.new_authority(now), ["localhost"], now)
    _, record = generate("alice", now)
    files = {
        "edge.pem": pair.public,
        "edge.key": pair.private,
        "ticket.key": pki.new_ticket_keys().private,
        "tokens.json": TokenStore([record]).dump(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return EdgeConfig(
        tls=TlsSettings(certificate=str(tmp_path / "edge.pem"), key=str(tmp_path / "edge.key")),
        clusters={"alpha": ClusterSettings(agents=["http://127.0.0.1:1"])},
        authentication=AuthenticationSettings(
            tokens=TokenSettings(file=str(tmp_path / "tokens.json"))
        ),
        ticket_key=str(tmp_path / "ticket.key"),
        base_url="/services/relay",
    )


def test_a_worker_reads_its_secrets_once(config: EdgeConfig) -> None:
    secrets = Secrets.read(config, EdgeMetrics.local())
    assert secrets.base_url == "/services/relay"
    assert secrets.tls.cert_store_stats()["x509"] == 0


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("edge.pem", "tls"),
        ("edge.key", "tls"),
        ("ticket.key", "ticket_key"),
        ("tokens.json", r"authentication\.tokens\.file"),
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_secret_that_cannot_be_used_is_named_by_its_setting(
    config: EdgeConfig, tmp_path: Path, file: str, setting: str, content: bytes | None
) -> None:
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{setting}: "):
        Secrets.read(config, EdgeMetrics.local())


def test_the_settings_bound_heads_and_times(config: EdgeConfig) -> None:
    sizes = EdgeLimits(request_line_bytes=1, header_bytes=2, headers=3, head_bytes=4)
    times = ConnectionSettings(head_timeout=5, body_timeout=6, write_timeout=7, idle_timeout=8)
    changed = msgspec.structs.replace(config, limits=sizes, connections=times)
    assert worker._bounds(changed) == (
        HeadLimits(request_line_bytes=1, header_bytes=2, headers=3, head_bytes=4),
        Timeouts(head=5, body=6, write=7, idle=8, linger=0.0),
    )


def test_a_worker_may_open_as_many_files_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 5000))
    monkeypatch.setattr(resource, "setrlimit", lambda *each: given.append(each))
    worker._raise_descriptor_limit()
    assert given == [(resource.RLIMIT_NOFILE, (5000, 5000))]


@pytest.fixture
def _no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_listeners", [])


@pytest.mark.usefixtures("_no_listeners")
def test_a_worker_without_a_shared_folder_counts_by_itself(tmp_path: Path) -> None:
    with capture_logs() as logged:
        metrics = worker._metrics(tmp_path / "nowhere" / "metrics")
    assert [each["event"] for each in logged] == ["shared_metrics_unavailable"]
    limits.record("limits.headers")
    assert metrics._limit_hits.labels("limits.headers")._value.get() == 1


class FakeApp:
    """A pipeline that remembers the policy that it was given."""

    def __init__(self) -> None:
        self.policies: list[Any] = []

    def change_policy(self, policy: Any) -> None:
        self.policies.append(policy)


def test_a_worker_takes_the_policy_that_its_parent_has_accepted(
    config: EdgeConfig, tmp_path: Path
) -> None:
    rules = [RuleSettings(authenticator="token", actions=[Action.LIST])]
    accepted = msgspec.structs.replace(config, policy=PolicySettings(rules=rules))
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode(accepted))
    app: Any = FakeApp()
    with capture_logs() as logged:
        worker._change_policy(app, tmp_path / "settings.json")
    (policy,) = app.policies
    assert policy.rules == tuple(each.rule() for each in rules)
    assert [(each["event"], each["rules"]) for each in logged] == [("policy_applied", 1)]


async def test_background_work_ends_with_the_block() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with worker._background(one=work(), two=work()):
        running = asyncio.all_tasks() - before
        assert {task.get_name() for task in running} == {"one", "two"}
    assert asyncio.all_tasks() == before
    assert all(task.cancelled() for task in running)


async def test_background_work_that_fails_ends_the_block() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ExceptionGroup) as caught:
        async with worker._background(failing=fail()):
            await asyncio.Event().wait()
    assert caught.group_contains(ValueError, match="^no$")


class FakeParent:
    """A parent that writes notes to the audit log, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[Any] = []

    async def call(self, request: Any) -> None:
        self.calls.append(request)
        await settle()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "written"), [(None, True), (CallError("failed", "disk full"), False)]
)
async def test_the_parent_writes_the_audit_log(error: Exception | None, *, written: bool) -> None:
    parent: Any = FakeParent(error)
    note: AuditNote | None = None
    assert await worker._write_audit(parent, note) is written
    assert parent.calls == [WriteNote(note)]


async def test_without_a_parent_no_decision_is_answered() -> None:
    parent: Any = FakeParent(ConnectionError("the parent is gone"))
    with pytest.raises(ConnectionError):
        await worker._write_audit(parent, None)
