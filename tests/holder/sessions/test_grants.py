from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import NoReturn

import pytest

from relay.auth.ownership import Grant
from relay.errors import DiskFull, Forbidden, NotFound, TooMany
from relay.holder.sessions.grants import GrantStore
from relay.kernel_folders import KernelFolder

BOB, EVE = "token:bob", "token:eve"


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    return KernelFolder(tmp_path)


@pytest.fixture
def guests(kernel_folder: KernelFolder) -> GrantStore:
    return GrantStore(kernel_folder, 2)


def test_grants_are_kept_for_agents_and_for_the_next_holder(
    kernel_folder: KernelFolder, guests: GrantStore
) -> None:
    assert kernel_folder.read_grants() == {}
    guests.change(BOB, Grant.VIEW)
    guests.change(EVE, Grant.USE)
    guests.change(BOB, Grant.USE)
    assert kernel_folder.read_grants() == {BOB: Grant.USE, EVE: Grant.USE}
    assert kernel_folder.grants.stat().st_mode & 0o777 == 0o600
    after = GrantStore(kernel_folder, 2)
    after.change(EVE, None)
    assert kernel_folder.read_grants() == {BOB: Grant.USE}
    with pytest.raises(Forbidden):
        after.admit(1, EVE, granted=True, views_only=True)
    after.admit(1, BOB, granted=True, views_only=False)


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[]", b'{"token:bob": "admin"}', b'{"a": 1}', b"\xff"]
)
def test_a_file_that_makes_no_sense_lets_nobody_in(
    kernel_folder: KernelFolder, note: bytes
) -> None:
    kernel_folder.grants.write_bytes(note)
    assert kernel_folder.read_grants() == {}
    with pytest.raises(Forbidden):
        GrantStore(kernel_folder, 2).admit(1, BOB, granted=True, views_only=True)


def test_there_are_only_so_many(kernel_folder: KernelFolder, guests: GrantStore) -> None:
    guests.change(BOB, Grant.VIEW)
    guests.change(EVE, Grant.VIEW)
    with pytest.raises(TooMany, match=r"kernels\.max_grants"):
        guests.change("token:ann", Grant.VIEW)
    # Those who are in can be told something else, also where fewer are allowed by now.
    GrantStore(kernel_folder, 1).change(EVE, Grant.USE)
    GrantStore(kernel_folder, 1).change(EVE, None)
    guests.change(EVE, None)
    guests.change("token:ann", Grant.VIEW)
    assert set(kernel_folder.read_grants()) == {BOB, "token:ann"}


def test_what_was_never_granted_cannot_be_taken_away(guests: GrantStore) -> None:
    with pytest.raises(NotFound):
        guests.change(BOB, None)


def test_a_grant_that_cannot_be_kept_is_none(
    kernel_folder: KernelFolder, guests: GrantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    guests.change(EVE, Grant.USE)
    guests.admit(1, EVE, granted=True, views_only=False)
    with monkeypatch.context() as patched:
        patched.setattr("relay.holder.sessions.grants.write_atomic", full)
        with pytest.raises(DiskFull):
            guests.change(BOB, Grant.USE)
        with pytest.raises(DiskFull):
            guests.change(EVE, None)
    with pytest.raises(Forbidden):
        guests.admit(2, BOB, granted=True, views_only=False)
    assert json.loads(kernel_folder.grants.read_bytes()) == {EVE: "use"}
    assert guests.change(EVE, None).keys() == {1}


@pytest.mark.parametrize(
    ("grant", "agents_word", "views_only"),
    [
        (Grant.USE, False, False),
        # Their own rights leave no more than that.
        (Grant.USE, True, True),
        # The agent looked before the grant was narrowed.
        (Grant.VIEW, False, True),
        (Grant.VIEW, True, True),
    ],
)
def test_who_only_views(
    guests: GrantStore, grant: Grant, agents_word: bool, views_only: bool
) -> None:
    guests.change(BOB, grant)
    guests.admit(1, BOB, granted=True, views_only=agents_word)
    assert guests.views_only(1) is views_only
    guests.leave(1)
    assert not guests.views_only(1)


def test_whom_a_change_sends_away(guests: GrantStore) -> None:
    guests.change(BOB, Grant.USE)
    guests.change(EVE, Grant.USE)
    guests.admit(1, BOB, granted=True, views_only=False)
    guests.admit(2, BOB, granted=True, views_only=True)
    guests.admit(3, EVE, granted=True, views_only=False)
    # Bob as an admin, or the owner with the name of a grant.
    guests.admit(4, BOB, granted=False, views_only=False)
    guests.admit(5, BOB, granted=True, views_only=False)
    guests.leave(5)
    assert guests.change(BOB, Grant.USE) == {}
    assert guests.change(BOB, Grant.VIEW) == {1: "you may now only view the kernel"}
    guests.leave(1)
    assert guests.change(BOB, None) == {2: "the kernel is no longer shared with you"}
    assert guests.change(EVE, None).keys() == {3}


def test_those_without_a_grant_need_none(guests: GrantStore) -> None:
    guests.admit(1, "token:ada", granted=False, views_only=False)
    guests.admit(2, "token:ada", granted=False, views_only=True)
    assert (guests.views_only(1), guests.views_only(2)) == (False, True)
