from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from relay.cli.checks import findings_of
from relay.edge import worker
from tests.cli.checks.conftest import Place


def test_whatever_else_keeps_an_edge_from_starting(
    place: Place, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise ValueError("the moon is full")

    monkeypatch.setattr(worker.Secrets, "read", read)
    (found,) = findings_of(place.edge_config())
    assert (found.severity, found.text) == ("error", "it would not start: the moon is full")
    place.edge["ticket_key"] = "none.key"
    assert look(place.edge_config()) == [("error", "ticket_key")]


def test_tickets_that_live_long(place: Place, look: Any) -> None:
    place.edge["ticket_lifetime"] = 60.0
    assert look(place.edge_config()) == []
    place.edge["ticket_lifetime"] = 61.0
    assert look(place.edge_config()) == [("warning", "ticket_lifetime")]


def test_a_file_without_tokens(place: Place, look: Any) -> None:
    place.write("tokens.json", b'{"tokens": []}')
    assert look(place.edge_config()) == [("warning", "authentication.tokens.file")]


def test_ticket_keys_that_cannot_be_used(place: Place, look: Any) -> None:
    place.agent["ticket_keys"] = ["ticket.pub", "none.pub", "ticket.key", "edge.pem"]
    paths = ["ticket_keys.1", "ticket_keys.2", "ticket_keys.3"]
    assert look(place.agent_config()) == [("error", path) for path in paths]


def test_an_agents_certificate(place: Place, look: Any) -> None:
    place.with_tls()
    place.agent["tls"] |= {"certificate": "ticket.pub", "client_ca": "tokens.json"}
    expected = [("error", "tls.certificate"), ("error", "tls.client_ca")]
    assert look(place.agent_config()) == expected


def test_folders(place: Place, look: Any) -> None:
    state = place.folder / "state"
    state.chmod(0o755)
    assert look(place.agent_config()) == look(place.up_config()) == [("warning", "state_dir")]
    state.rmdir()
    assert look(place.agent_config()) == look(place.up_config()) == []
    state.touch()
    assert look(place.agent_config()) == look(place.up_config()) == [("error", "state_dir")]
    state.unlink()
    for kind in (place.agent, place.up):
        kind["root_dir"] = "nowhere"
    assert look(place.agent_config()) == look(place.up_config()) == [("error", "root_dir")]


def test_damaged_tokens_of_relay_up(place: Place, look: Any) -> None:
    place.write("state/tokens.json", b"{")
    assert look(place.up_config()) == [("error", "state_dir")]


def test_there_should_be_an_audit_log(place: Place, look: Any) -> None:
    del place.edge["audit"]
    assert look(place.edge_config()) == [("warning", "audit.file")]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("something else\n"),
        lambda path: path.mkdir(),
        make_fifo,
    ],
)
def test_an_audit_log_that_is_none(place: Place, look: Any, make: Any) -> None:
    path = place.folder / "audit.log"
    make(path)
    if path.is_file():
        path.chmod(0o600)
    for kind in (place.edge, place.up):
        kind["audit"] = {"file": "audit.log"}
    assert look(place.edge_config()) == look(place.up_config()) == [("error", "audit.file")]


def test_an_audit_log_without_a_folder(place: Place, look: Any) -> None:
    place.edge["audit"] = {"file": "logs/audit.log"}
    assert look(place.edge_config()) == [("error", "audit.file")]
