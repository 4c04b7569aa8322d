from __future__ import annotations

import pytest

from relay.config import KernelEnvironment


def test_a_kernel_inherits_what_is_listed_and_nothing_else() -> None:
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
    settings = KernelEnvironment(inherit=["PATH", "LC_*", "HOME"])
    assert settings.inherited(own) == {"PATH": "/bin", "LC_ALL": "C", "LC_": "x"}


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "J*", "R*", "JUPYTERHUB_*", "RELAY_*"),
        *("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "RELAY_X"),
    ],
)
def test_no_pattern_gives_a_kernel_what_is_the_relays_own(pattern: str) -> None:
    names = ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "RELAY_X", "JUPYTER_PATH")
    own = dict.fromkeys(names, "x")
    inherited = KernelEnvironment(inherit=[pattern]).inherited(own)
    assert inherited == ({"JUPYTER_PATH": "x"} if pattern in ("J*", "*") else {})


def test_nothing_of_the_relays_own_is_inherited_by_default() -> None:
    names = [
        *("RELAY_STATE_DIR", "NOTIFY_SOCKET", "LISTEN_FDS", "XDG_RUNTIME_DIR"),
        *("AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "PYTHONPATH", "LD_PRELOAD"),
    ]
    own = dict.fromkeys([*names, "HOME", "CONDA_PREFIX"], "x")
    assert KernelEnvironment().inherited(own) == {"HOME": "x", "CONDA_PREFIX": "x"}
