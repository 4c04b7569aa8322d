from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.checks.conftest import Place

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_right(relay: Run, place: Place) -> None:
    code, out, err = relay("check-config", str(place.file("edge")))
    assert (code, out, err) == (0, "No mistakes and no dangerous settings were found.\n", "")


def test_all_mistakes_are_told_with_their_places(relay: Run, place: Place) -> None:
    path = place.folder / "edge.yaml"
    text = place.file("edge").read_text()
    path.write_text(text + "wrokers: 3\ndrain: x\n")
    code, out, _ = relay("check-config", "--edge", str(path))
    lines = out.splitlines()
    count = len(text.splitlines())
    assert code == 2
    assert f"error: {path}:{count + 1}: wrokers: no such setting; did you mean workers?" in lines
    assert [line for line in lines if line.startswith(f"error: {path}:{count + 2}: drain: ")]
    assert lines[-1] == "2 errors, 0 warnings."


def test_mistakes_of_files_have_the_place_of_their_setting(relay: Run, place: Place) -> None:
    path = place.file("edge")
    (place.folder / "edge.key").unlink()
    (place.folder / "ticket.key").unlink()
    code, out, _ = relay("check-config", str(path))
    assert code == 2
    found = re.findall(rf"^error: {re.escape(str(path))}:([0-9]+): (\S+):", out, re.MULTILINE)
    lines = path.read_text().splitlines()
    assert {name for _, name in found} == {"tls.key", "ticket_key"}
    for line, name in found:
        assert lines[int(line) - 1].strip().startswith(name.rpartition(".")[2])


def test_warnings_are_no_failure_unless_they_are_to_be(relay: Run, place: Place) -> None:
    place.edge["policy"] = {"rules": []}
    path = str(place.file("edge"))
    code, out, _ = relay("check-config", path)
    assert (code, out.splitlines()[-1]) == (0, "0 errors, 1 warning.")
    assert out.startswith("warning: ")
    assert relay("check-config", path, "--strict")[0] == 1
    (place.folder / "ticket.key").unlink()
    assert relay("check-config", path, "--strict")[0] == 2


@pytest.mark.parametrize("kind", ["edge", "agent", "up"])
def test_what_a_file_is_for_is_found_out(relay: Run, place: Place, kind: str) -> None:
    path = str(place.file(kind))
    found_out = relay("check-config", path)
    assert found_out == relay("check-config", f"--{kind}", path)
    assert found_out[0] == 0
    for other in {"edge", "agent", "up"} - {kind}:
        assert relay("check-config", f"--{other}", path)[0] == 2


def test_what_could_be_for_several_programs(relay: Run, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("log: {level: info}\n")
    code, out, _ = relay("check-config", str(path))
    assert code == 2
    assert "use --edge, --agent or --up" in out


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "\x00", "x: &a [*a]\n"])
def test_what_is_no_configuration(relay: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(content)
    assert relay("check-config", str(path))[0] == 2


def test_no_file(relay: Run, tmp_path: Path) -> None:
    assert relay("check-config")[0] == 2
    code, out, _ = relay("check-config", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "cannot be read" in out


def test_edge_and_agent_against_each_other(relay: Run, place: Place) -> None:
    edge, agent = str(place.file("edge")), str(place.file("agent"))
    assert relay("check-config", edge, agent)[0] == 0
    place.agent["cluster"] = "beta"
    other = place.write("other.yaml", place.file("agent").read_bytes())
    place.agent["cluster"] = "alpha"
    agent = str(place.file("agent"))
    code, out, _ = relay("check-config", "--edge", edge, "--agent", agent, "--agent", str(other))
    assert code == 2
    (line,) = (line for line in out.splitlines() if line.startswith("error"))
    assert line.startswith(f"error: {other}:1: cluster: the edge has no cluster 'beta'")


def test_agents_of_one_cluster_against_each_other(relay: Run, place: Place) -> None:
    first = place.write("first.yaml", place.file("agent").read_bytes())
    place.agent |= {"state_dir": "other", "listen": {"port": 8452}}
    second = place.write("second.yaml", place.file("agent").read_bytes())
    place.agent |= {"cluster": "beta"}
    third = place.write("third.yaml", place.file("agent").read_bytes())
    code, out, _ = relay("check-config", str(first), str(third), str(second))
    assert code == 2
    (line,) = (line for line in out.splitlines() if line.startswith("error"))
    assert re.match(rf"error: {re.escape(str(second))}:[0-9]+: state_dir: ", line)
    assert re.search(rf"{place.folder}/state \({re.escape(str(first))}:[0-9]+\)", line)
    assert "404" in line
    assert relay("check-config", str(first), str(first), str(third))[0] == 0


def test_os_users_behind_a_plain_listener_are_refused(relay: Run, place: Place) -> None:
    place.with_os_users()
    path = str(place.file("agent"))
    code, out, _ = relay("check-config", path)
    assert code == 2
    (line,) = (line for line in out.splitlines() if line.startswith("error"))
    assert re.match(rf"error: {re.escape(path)}:[0-9]+: launch_as: it needs mutual TLS, ", line)
    place.with_tls()
    assert relay("check-config", str(place.file("agent")))[0] == 0
    assert relay("check-config", str(place.file("edge")), str(place.file("agent")))[0] == 0


def test_variables_count(relay: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TICKET_LIFETIME", "120")
    code, out, _ = relay("check-config", "--edge", str(place.file("edge")))
    assert code == 0
    assert "warning: $RELAY_TICKET_LIFETIME: ticket_lifetime: 120 s" in out


# --- authentication cannot be turned off ---


@pytest.mark.parametrize("nothing", ["", "{}", "null", "{tokens: null}", "{chain: []}", "false"])
def test_an_edge_that_nobody_could_enter_is_refused(relay: Run, place: Place, nothing: str) -> None:
    del place.edge["authentication"]
    path = place.file("edge")
    if nothing:
        path.write_text(path.read_text() + f"authentication: {nothing}\n")
    for command in (("check-config", "--edge", str(path)), ("edge", "--config", str(path))):
        code, out, err = relay(*command)
        assert code == 2
        assert "authentication" in out + err


@pytest.mark.parametrize("option", ["--insecure-no-auth", "--no-auth", "--insecure"])
@pytest.mark.parametrize("program", ["edge", "up"])
def test_no_option_lets_everybody_in(relay: Run, place: Place, program: str, option: str) -> None:
    assert relay(program, "--config", str(place.file(program)), option)[0] == 2


@pytest.mark.parametrize("name", ["insecure_no_auth", "auth", "allow_anonymous", "no_auth"])
@pytest.mark.parametrize("value", ["true", "false", "none"])
def test_no_setting_lets_everybody_in(relay: Run, place: Place, name: str, value: str) -> None:
    for section in ("", "authentication"):
        settings = place.edge[section] if section else place.edge
        settings[name] = value
        assert relay("edge", "--config", str(place.file("edge")))[0] == 2
        del settings[name]
