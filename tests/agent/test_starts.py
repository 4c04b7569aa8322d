from __future__ import annotations

from pathlib import Path

import pytest

from relay.agent.starts import client_environment, inherited_environment, working_folder
from relay.config import KernelEnvironment
from relay.errors import BadRequest

SETTINGS = KernelEnvironment(allowed=["MY_VARIABLE"], value_bytes=20)

# The environment


def test_a_client_sets_kernel_variables_and_what_is_allowed() -> None:
    asked = {
        "KERNEL_ID": "k",
        "KERNEL_": "empty name",
        "MY_VARIABLE": "mine",
        "PATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "PYTHONPATH": "/evil",
        "MY_VARIABLE_TOO": "x",
        "kernel_id": "x",
        "XKERNEL_ID": "x",
    }
    assert client_environment(asked, SETTINGS) == {
        "KERNEL_ID": "k",
        "KERNEL_": "empty name",
        "MY_VARIABLE": "mine",
    }


@pytest.mark.parametrize("value", ["", "x" * 20, "\u00e9" * 10, "a b=c;$(d)", "\U0001f600"])
def test_values_are_passed_as_they_are(value: str) -> None:
    assert client_environment({"KERNEL_X": value}, SETTINGS) == {"KERNEL_X": value}


@pytest.mark.parametrize(
    "name", ["", "A B", "A=B", "KERNEL_X=", "1A", "A\0", "KERNEL_\u00e9", "A-B"]
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        client_environment({name: "x"}, SETTINGS)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], {}])
def test_a_value_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="KERNEL_X is not a string"):
        client_environment({"KERNEL_X": value}, SETTINGS)
    assert client_environment({"OTHER": value}, SETTINGS) == {}


@pytest.mark.parametrize("value", ["x" * 21, "\u00e9" * 11])
def test_a_value_that_is_too_long_is_refused_by_its_setting(value: str) -> None:
    with pytest.raises(BadRequest, match=r"environment\.value_bytes") as caught:
        client_environment({"KERNEL_X": value}, SETTINGS)
    assert value not in caught.value.message


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x1f", "\x7f"])
def test_control_characters_are_refused(character: str) -> None:
    with pytest.raises(BadRequest, match="control characters"):
        client_environment({"KERNEL_X": f"a{character}b"}, SETTINGS)


def test_a_kernel_inherits_what_is_listed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "LC_": "x",
        "MY_SECRET": "x",
        "PATHS": "x",
        "XLC_ALL": "x",
        "path": "x",
        "RELAY_TOKEN": "x",
    }
    monkeypatch.setattr("os.environ", own)
    settings = KernelEnvironment(inherit=["PATH", "LC_*", "HOME"])
    assert inherited_environment(settings) == {"PATH": "/bin", "LC_ALL": "C", "LC_": "x"}


def test_no_pattern_gives_a_kernel_what_is_the_relays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "RELAY_X", "JUPYTER_PATH"):
        monkeypatch.setenv(name, "x")
    for pattern in ("J*", "R*", "JUPYTERHUB_*", "JUPYTERHUB_API_TOKEN", "RELAY_X"):
        inherited = inherited_environment(KernelEnvironment(inherit=[pattern]))
        assert not inherited.keys() & {"JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "RELAY_X"}
    assert inherited_environment(KernelEnvironment(inherit=["J*"]))["JUPYTER_PATH"] == "x"


def test_nothing_of_the_relays_own_is_inherited_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [
        *("RELAY_STATE_DIR", "NOTIFY_SOCKET", "LISTEN_FDS", "XDG_RUNTIME_DIR"),
        *("AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "PYTHONPATH", "LD_PRELOAD"),
    ]
    monkeypatch.setattr("os.environ", dict.fromkeys([*names, "HOME", "CONDA_PREFIX"], "x"))
    assert inherited_environment(KernelEnvironment()) == {"HOME": "x", "CONDA_PREFIX": "x"}


# The folder


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", "."),
        ("/", "."),
        ("work", "work"),
        ("/work", "work"),
        ("work/", "work"),
        ("work/deep/notebook.ipynb", "work/deep"),
        ("work/none/deep", "work"),
        ("none/work", "."),
        ("work/file.txt/x", "work"),
        ("a\0b", "."),
        ("inside", "work"),
        ("work/" + "x" * 300, "work"),
    ],
)
def test_a_kernel_starts_in_the_deepest_folder_there_is(
    tmp_path: Path, path: str, found: str
) -> None:
    (tmp_path / "work/deep").mkdir(parents=True)
    (tmp_path / "work/file.txt").touch()
    (tmp_path / "inside").symlink_to("work")
    assert working_folder(str(tmp_path), path) == str((tmp_path / found).resolve())


@pytest.mark.parametrize("path", ["..", "../x", "work/../../x", "out", "out/x"])
def test_no_path_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "work").mkdir(parents=True)
    (root / "out").symlink_to("/")
    with pytest.raises(BadRequest, match="root_dir"):
        working_folder(str(root), path)


def test_without_root_and_path_the_agents_own_folder_will_do() -> None:
    assert working_folder(None, None) is None
