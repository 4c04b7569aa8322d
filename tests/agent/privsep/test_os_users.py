from __future__ import annotations

import os
import pwd
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.agent.privsep import os_users
from relay.agent.privsep.os_users import OsUser, OsUsers, own_variables
from relay.config import LaunchAs
from relay.errors import Forbidden
from relay.model import Principal
from relay.processes import StartError

GROUPS = {"alice": [2001, 50], "insider": [2003, 900], "relay": [900]}
PASSWD = {
    name: pwd.struct_passwd((name, "x", uid, gid, "", f"/home/{name}", shell))
    for name, uid, gid, shell in [
        ("root", 0, 0, "/bin/sh"),
        ("toor", 0, 0, "/bin/sh"),
        ("daemon", 1, 1, ""),
        ("relay", 900, 900, "/usr/sbin/nologin"),
        ("edge", 999, 999, ""),
        ("first", 1000, 1000, ""),
        ("alice", 2001, 2001, "/bin/zsh"),
        ("bob", 2002, 2002, ""),
        ("insider", 2003, 2003, ""),
        ("relay2", 900, 900, ""),
        ("banned", 3000, 3000, ""),
        ("banned2", 3000, 3000, ""),
        ("nobody", 65534, 65534, ""),
    ]
}
ALICE = Principal("token", "alice")


@pytest.fixture(autouse=True)
def _passwd(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> pwd.struct_passwd:
        if not name.isalnum() or name.isdecimal() or not name.isascii():
            # As one that has users of any name.
            return pwd.struct_passwd((name, "x", 4000, 4000, "", "/", ""))
        # As one that takes upper case for lower case.
        return PASSWD[name.lower()]

    monkeypatch.setattr(pwd, "getpwnam", find)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: GROUPS.get(name, [gid]))


def made(**settings: Any) -> OsUsers:
    return OsUsers.of_config(LaunchAs(**settings), "relay")


def test_a_principal_is_mapped() -> None:
    user = made(map={"token:alice": "bob", "oidc:alice": "alice"}).of(ALICE)
    assert (user.name, user.uid, user.gid) == ("bob", 2002, 2002)
    assert made(map={"token:alice": "alice"}).of(ALICE).groups == [2001, 50]


def test_a_template_is_for_its_authenticators_only() -> None:
    by_template = made(template="{subject}", authenticators=["hub"])
    assert by_template.of(Principal("hub", "alice")).name == "alice"
    with pytest.raises(Forbidden):
        by_template.of(ALICE)


def test_the_map_goes_before_the_template() -> None:
    both = made(map={"hub:alice": "bob"}, template="{subject}", authenticators=["hub"])
    assert both.of(Principal("hub", "alice")).name == "bob"
    assert both.of(Principal("hub", "bob")).name == "bob"


@pytest.mark.parametrize(
    "subject",
    [
        *("root", "toor", "daemon", "edge", "nobody", "relay", "relay2", "insider"),
        *("unknown", "Alice", "ALICE", "alice ", " alice", "alice\n", "alice\0", "2001", "0"),
        *("../alice", "alice/..", "alice:x", "-alice", "", "{subject}", "älice", "alice@site"),
        *("a" * 33, "alice;id", "$(id)", "alice,bob", "+alice", "banned", "banned2"),
    ],
)
def test_a_template_makes_nobody_of_anybody(subject: str) -> None:
    by_template = made(template="{subject}", authenticators=["hub"], refuse=["root", 65534, 3000])
    with pytest.raises(Forbidden, match="launch_as"):
        by_template.of(Principal("hub", subject))


@pytest.mark.parametrize("name", ["root", "toor", "daemon", "edge", "relay", "relay2", "insider"])
@pytest.mark.parametrize("refuse", [[], ["nobody"]])
def test_no_map_makes_a_principal_root_or_the_agent(name: str, refuse: list[int | str]) -> None:
    with pytest.raises(Forbidden):
        made(map={"token:alice": name}, refuse=refuse).of(ALICE)


def test_not_even_a_map_and_a_low_minimum_do() -> None:
    for name in ("root", "toor", "relay", "relay2"):
        with pytest.raises(Forbidden):
            made(map={"token:alice": name}, refuse=[], min_uid=0).of(ALICE)
    assert made(map={"token:alice": "daemon"}, refuse=[], min_uid=1).of(ALICE).uid == 1


@pytest.mark.parametrize("refuse", [["alice"], [2001], ["root", 2001]])
def test_who_is_refused_is_refused(refuse: list[int | str]) -> None:
    with pytest.raises(Forbidden):
        made(map={"token:alice": "alice"}, refuse=refuse).of(ALICE)


def test_a_refused_user_is_refused_under_another_name() -> None:
    with pytest.raises(Forbidden):
        made(map={"token:alice": "banned2"}, refuse=["banned"]).of(ALICE)


def test_the_lowest_uid_is_included() -> None:
    assert made(map={"token:alice": "first"}).of(ALICE).uid == 1000
    with pytest.raises(Forbidden):
        made(map={"token:alice": "first"}, min_uid=1001).of(ALICE)


def test_an_owner_that_is_none_has_no_uid() -> None:
    mapped = made(map={"token:alice": "alice"})
    assert mapped.uid_of("token:alice") == 2001
    for owner in ("token:bob", "alice", "", ":alice", "token:", "oidc:alice", "token:alice "):
        assert mapped.uid_of(owner) is None


@pytest.mark.parametrize("name", ["root", "toor", "nosuch", "RELAY"])
def test_the_agent_is_an_os_user_and_not_root(name: str) -> None:
    with pytest.raises(StartError, match="user: "):
        OsUsers.of_config(LaunchAs(), name)


def test_the_variables_of_a_user() -> None:
    user = OsUser.find("bob")
    assert user is not None
    found = own_variables(
        {"HOME": "/root", "USER": "root", "XDG_RUNTIME_DIR": "/x", "A": "b"}, user
    )
    assert found == {
        "HOME": "/home/bob",
        "USER": "bob",
        "LOGNAME": "bob",
        "SHELL": "/bin/sh",
        "A": "b",
    }
    assert user.working_folder == "/"


def test_the_log_says_why() -> None:
    with capture_logs() as lines, pytest.raises(Forbidden):
        os_users.OsUsers.of_config(LaunchAs(map={"token:alice": "root"}), "relay").of(ALICE)
    (line,) = lines
    assert line["problem"] == "refused (launch_as.refuse)"
