from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.agent.privsep import helper
from relay.agent.privsep.os_users import OsUser
from relay.config import AgentConfig, AgentTls, LaunchAs, ListenSettings
from relay.processes import StartError

AGENT = OsUser("relay", 54001, 54001, "/", "")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        cluster="alpha",
        listen=ListenSettings(port=0),
        state_dir=str(tmp_path / "state"),
        runtime_dir=str(tmp_path / "run"),
        user="daemon",
        launch_as=LaunchAs(),
        tls=AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem"),
        ticket_keys=["a.pub"],
    )


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
@as_root
def test_a_configuration_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "agent.yaml"
    path.touch()
    path.chmod(mode)
    with pytest.raises(StartError, match="writable by nobody else"):
        helper.run(config(tmp_path), path, {})
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(StartError, match="writable by nobody else"):
        helper.run(config(tmp_path), path, {})
    tmp_path.chmod(0o755)
    os.chown(path, AGENT.uid, 0)
    with pytest.raises(StartError, match="must be root's"):
        helper.run(config(tmp_path), path, {})


def test_only_root_can_launch_as_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StartError, match="as root"):
        helper.run(config(tmp_path), tmp_path / "agent.yaml", {})
