from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from structlog.testing import capture_logs

from relay.config import EdgeConfig, load
from relay.edge import reload as module
from relay.edge.reload import SharedConfig, read

RULE = {"authenticator": "token", "user": "alice", "actions": ["list"]}
GOOD: dict[str, Any] = {
    "tls": {"certificate": "c.pem", "key": "k.pem"},
    "clusters": {"alpha": {"agents": ["http://127.0.0.1:1"]}},
    "authentication": {"tokens": {"file": "t.json"}},
    "ticket_key": "ticket.pem",
    "policy": {"rules": [RULE]},
}


class Edited:
    """A file that people edit, and what a parent makes of it."""

    def __init__(self, folder: Path) -> None:
        self._source = folder / "edge.yaml"
        self.write()
        own = folder / "own"
        own.mkdir(0o700)
        self.settings = SharedConfig(load(EdgeConfig, self._source, {}), self._source, own)

    def write(self, **more: Any) -> None:
        self._source.write_text(yaml.safe_dump({**GOOD, **more}))

    def write_text(self, text: str) -> None:
        self._source.write_text(text)

    def users(self) -> list[str | None]:
        """Whom the workers' rules are for."""
        return [rule.user for rule in read(self.settings.path).policy.rules]


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    return Edited(tmp_path)


def test_workers_read_what_the_parent_has_read(edited: Edited, tmp_path: Path) -> None:
    config = read(edited.settings.path)
    assert config == edited.settings.accepted
    assert config.ticket_key == str(tmp_path / "ticket.pem")
    assert edited.settings.path.stat().st_mode & 0o777 == 0o600


def test_rules_are_taken_and_what_else_has_changed_is_named(edited: Edited) -> None:
    edited.write(policy={"rules": [{**RULE, "user": "bob"}]}, workers=5, drain=1)
    assert edited.users() == ["alice"]
    with capture_logs() as logs:
        assert edited.settings.read_again()
    assert edited.users() == ["bob"]
    assert read(edited.settings.path).workers == 2
    (line,) = logs
    assert (line["event"], line["rules"]) == ("policy_reloaded", 1)
    assert sorted(line["other_changes"]) == ["drain", "workers"]
    # They are still to come.
    with capture_logs() as logs:
        assert edited.settings.read_again()
    assert sorted(logs[0]["other_changes"]) == ["drain", "workers"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("policy: [", "edge.yaml"),
        ("", "tls"),
        (yaml.safe_dump({**GOOD, "policy": {"rules": [{**RULE, "actions": ["fly"]}]}}), "actions"),
        (
            yaml.safe_dump(
                {
                    **GOOD,
                    "authentication": {"tokens": {"file": "t"}, "jupyterhub": {}},
                    "policy": {"rules": [{**RULE, "authenticator": "jupyterhub"}]},
                }
            ),
            "policy.rules.0: authenticator jupyterhub is not set; known are token, before a rest",
        ),
    ],
)
def test_what_cannot_be_used_changes_nothing(edited: Edited, text: str, problem: str) -> None:
    edited.write_text(text)
    with capture_logs() as logs:
        assert not edited.settings.read_again()
    assert edited.users() == ["alice"]
    assert edited.settings.failures == 1
    assert {line["event"] for line in logs} == {"configuration_invalid"}
    assert any(problem in line["problem"] for line in logs)


def test_a_copy_that_cannot_be_written_is_no_copy(
    edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    edited.write(policy={"rules": []})
    monkeypatch.setattr(module, "write_atomic", full)
    with capture_logs() as logs:
        assert not edited.settings.read_again()
    assert "No space left" in logs[0]["problem"]
    assert edited.users() == ["alice"]
    assert [rule.user for rule in edited.settings.accepted.policy.rules] == ["alice"]


def test_what_is_no_copy_of_ours_is_an_error(edited: Edited) -> None:
    edited.settings.path.write_text("{}")
    with pytest.raises(msgspec.ValidationError):
        read(edited.settings.path)
