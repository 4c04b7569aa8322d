from __future__ import annotations

from pathlib import Path

import pytest

from relay.agent.api.start_request import client_environment, working_folder
from relay.config import KernelEnvironment
from relay.errors import BadRequest

SETTINGS = KernelEnvironment(allowed=["MY_VARIABLE"], value_bytes=20)

# The environment


def test_a_client_sets_kernel_variables_and_what_is_allowed() -> None:
    asked = {
        "KERNEL_X": "k",
        "KERNEL_": "empty name",
        "MY_VARIABLE": "mine",
        "PATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "PYTHONPATH": "/evil",
        "MY_VARIABLE_TOO": "x",
        "kernel_x": "x",
        "XKERNEL_X": "x",
    }
    assert client_environment(asked, SETTINGS) == {
        "KERNEL_X": "k",
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


@pytest.mark.parametrize(
    "character",
    ["\0", "\n", "\r", "\t", "\x1b", "\x1f", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\ud800"],
)
def test_control_characters_are_refused(character: str) -> None:
    with pytest.raises(BadRequest, match="control characters"):
        client_environment({"KERNEL_X": f"a{character}b"}, SETTINGS)


IDENTITIES = [
    *("KERNEL_USERNAME", "KERNEL_USER", "KERNEL_USERID", "KERNEL_USER_ID", "KERNEL_UID"),
    *("KERNEL_GROUP", "KERNEL_GROUPS", "KERNEL_GID", "KERNEL_TENANT_ID"),
    *("KERNEL_ID", "KERNEL_POD_NAME", "KERNEL_NAMESPACE", "KERNEL_SERVICE_ACCOUNT_NAME"),
]


@pytest.mark.parametrize("name", IDENTITIES)
def test_no_client_says_who_it_is(name: str) -> None:
    settings = KernelEnvironment(allowed=[name])
    for value in ("root", "0", "x" * 5000, None):
        assert client_environment({name: value}, settings) == {}


CODE = [
    *("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP"),
    *("PYTHONHOME", "JPY_PARENT_PID", "JPY_SESSION_NAME", "BASH_ENV", "ENV", "IFS", "SHELLOPTS"),
    *("NODE_OPTIONS", "PERL5LIB", "PERL5OPT", "RUBYOPT", "R_PROFILE", "R_PROFILE_USER"),
    *("JULIA_LOAD_PATH", "JAVA_TOOL_OPTIONS", "GCONV_PATH", "HOME", "IPYTHONDIR", "JUPYTER_PATH"),
    *("HTTPS_PROXY", "RELAY_STATE_DIR", "BASH_FUNC_x%%"),
]


@pytest.mark.parametrize("name", [each for each in CODE if "%" not in each])
def test_what_decides_which_code_runs_passes_where_it_is_named_only(name: str) -> None:
    asked = {name: "/evil"}
    assert client_environment(asked, KernelEnvironment()) == {}
    assert client_environment(asked, KernelEnvironment(allowed=[f"{name}_X", name[:-1]])) == {}
    assert client_environment(asked, KernelEnvironment(allowed=[name])) == asked


def test_a_shells_function_has_no_name_that_could_pass() -> None:
    with pytest.raises(BadRequest, match="name"):
        client_environment({"BASH_FUNC_x%%": "() { :; }"}, KernelEnvironment())


def test_a_client_sets_only_so_many_variables() -> None:
    settings = KernelEnvironment(variables=3)
    asked = {f"KERNEL_{number}": "x" for number in range(3)}
    assert client_environment(asked, settings) == asked
    # Those that are left out count too: looking at them costs the same.
    with pytest.raises(BadRequest, match=r"environment\.variables"):
        client_environment({**asked, "OTHER": "x"}, settings)


def test_a_client_sets_only_so_much() -> None:
    settings = KernelEnvironment(bytes=20)
    longest = {"KERNEL_A": "\u00e9", "KERNEL_B": "xy"}  # 20 bytes
    assert client_environment(longest, settings) == longest
    assert client_environment({**longest, "OTHER": "x" * 100}, settings) == longest
    with pytest.raises(BadRequest, match=r"environment\.bytes"):
        client_environment({**longest, "KERNEL_B": "xyz"}, settings)


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
