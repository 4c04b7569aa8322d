from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relay.agent.privsep.folders import UserFolders
from relay.agent.privsep.os_users import OsUser
from relay.errors import Conflict

AGENT = OsUser("relay", 54001, 54001, "/", "")
ALICE = OsUser("alice", 54002, 54012, "/", "")
BOB = OsUser("bob", 54003, 54013, "/", "")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


@pytest.fixture
def folders(tmp_path: Path) -> UserFolders:
    kernels = tmp_path / "state" / "alpha" / "kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    for folder in (tmp_path / "run", kernels.parent, kernels):
        os.chown(folder, AGENT.uid, AGENT.gid)
    return UserFolders(tmp_path / "state", "alpha", tmp_path / "run", AGENT)


def look(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


@as_root
def test_a_kernels_folder_is_its_users_and_the_agents_by_its_group(folders: UserFolders) -> None:
    for _ in range(2):
        folders.make_kernel_folder("k", ALICE)
        assert look(folders.kernel_folder("k").path) == (ALICE.uid, AGENT.gid, 0o3770)
    assert folders.uid("k") == ALICE.uid


@as_root
def test_a_folder_of_sockets_is_its_users(folders: UserFolders, tmp_path: Path) -> None:
    for _ in range(2):
        folders.make_socket_folder(ALICE)
        folder = tmp_path / "run" / str(ALICE.uid)
        assert look(folder) == (ALICE.uid, AGENT.gid, 0o2750)


@as_root
def test_another_users_folder_is_taken_unless_it_is_empty(folders: UserFolders) -> None:
    folders.make_kernel_folder("k", ALICE)
    request = folders.kernel_folder("k").request
    request.touch()
    with pytest.raises(Conflict):
        folders.make_kernel_folder("k", BOB)
    assert folders.uid("k") == ALICE.uid
    request.unlink()
    folders.make_kernel_folder("k", BOB)
    assert folders.uid("k") == BOB.uid


@as_root
@pytest.mark.parametrize("what", ["link", "file", "of root", "of the agent"])
def test_what_the_agent_has_put_in_the_place_of_a_folder_is_not_given_away(
    folders: UserFolders, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "roots"
    target.mkdir()
    (target / "file").touch()
    kernel, sockets = folders.kernel_folder("k").path, tmp_path / "run" / str(ALICE.uid)
    for kernel_folder in (kernel, sockets):
        match what:
            case "link":
                kernel_folder.symlink_to(target)
            case "file":
                kernel_folder.touch()
            case _:
                kernel_folder.mkdir()
                (kernel_folder / "file").touch()
                if what == "of the agent":
                    os.chown(kernel_folder, AGENT.uid, AGENT.gid)
    before = [look(path) for path in (target, kernel, sockets)]
    with pytest.raises((OSError, Conflict)):
        folders.make_kernel_folder("k", ALICE)
    with pytest.raises((OSError, Conflict)):
        folders.make_socket_folder(ALICE)
    assert [look(path) for path in (target, kernel, sockets)] == before
    assert (target / "file").exists()


@as_root
@pytest.mark.parametrize("part", ["alpha", "alpha/kernels"])
def test_no_link_leads_root_to_other_folders(
    folders: UserFolders, tmp_path: Path, part: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kernels" / "k").mkdir(parents=True)
    moved = tmp_path / "state" / part
    moved.rename(tmp_path / "moved")
    moved.symlink_to(elsewhere if part == "alpha" else elsewhere / "kernels")
    for action in (
        lambda: folders.make_kernel_folder("k2", ALICE),
        lambda: folders.uid("k"),
        lambda: folders.hide("k"),
    ):
        with pytest.raises(NotADirectoryError):
            action()
    folders.drop("k")
    assert [each.name for each in (elsewhere / "kernels").iterdir()] == ["k"]
    assert look(elsewhere / "kernels" / "k")[0] == 0


@as_root
def test_a_hidden_folder_frees_the_id_and_only_empty_ones_are_dropped(folders: UserFolders) -> None:
    folders.make_kernel_folder("k", ALICE)
    folders.kernel_folder("k").request.touch()
    folders.drop("k")
    assert folders.names() == ["k"]
    hidden = folders.hide("k")
    assert folders.names() == [hidden]
    assert hidden.startswith(".k.")
    (folders.kernel_folder(hidden).path / "request.json").unlink()
    folders.drop(hidden)
    assert folders.names() == []
