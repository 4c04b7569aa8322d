from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.agent.holder_process import HolderFiles
from relay.agent.launchers import own_user
from relay.agent.launchers.local import RuntimeInfo
from relay.agent.launchers.own_user import OwnUserRunner
from relay.files import FolderError
from relay.kernel_folders import KernelFolder, kernels_folder


@pytest.fixture
def runner(tmp_path: Path) -> OwnUserRunner:
    runner = OwnUserRunner(tmp_path, "alpha", str(tmp_path / "run"))
    runner.open_folders()
    return runner


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    return KernelFolder(kernels_folder(tmp_path, "alpha") / "k")


async def test_folders_are_this_users_alone(
    runner: OwnUserRunner, kernel_folder: KernelFolder, tmp_path: Path
) -> None:
    assert await runner.prepare(kernel_folder, "token:ada") == RuntimeInfo(tmp_path / "run")
    for folder in (kernel_folder.path, kernel_folder.path.parent, tmp_path / "run"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert runner.owner_matches(kernel_folder, "anybody:at all")


def test_what_was_half_deleted_is_swept(runner: OwnUserRunner, kernel_folder: KernelFolder) -> None:
    left = kernel_folder.path.with_name(".k.0a0a0a0a")
    left.mkdir()
    runner.open_folders()
    assert not left.exists()


def test_a_runtime_folder_that_is_too_long_is_refused_at_once(tmp_path: Path) -> None:
    runner = OwnUserRunner(tmp_path, "alpha", str(tmp_path / ("long" * 30)))
    with pytest.raises(FolderError, match="too long"):
        runner.open_folders()


async def test_a_holder_gets_the_agents_variables_but_for_the_relays_own(
    runner: OwnUserRunner, kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict[str, str]] = []

    def run_holder(folder: KernelFolder, files: HolderFiles, environment: dict[str, str]) -> int:
        ran.append(environment)
        return 7

    monkeypatch.setattr(own_user, "run_holder", run_holder)
    monkeypatch.setenv("RELAY_LOG__LEVEL", "debug")
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert await runner.run(kernel_folder, "token:ada", HolderFiles(0, 1, 2)) == 7
    (environment,) = ran
    assert environment["LANG"] == "C.UTF-8"
    assert environment == {
        name: value for name, value in os.environ.items() if name != "RELAY_LOG__LEVEL"
    }


async def test_a_kernel_is_cleaned_up_with_this_users_rights(
    runner: OwnUserRunner, kernel_folder: KernelFolder
) -> None:
    await runner.prepare(kernel_folder, "token:ada")
    kernel_folder.request.touch()
    await runner.clean_up(kernel_folder, None)
    assert not kernel_folder.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
async def test_another_users_kernel_is_cleaned_up_with_that_users_rights(
    runner: OwnUserRunner, kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[KernelFolder] = []

    async def clean_up_as_owner(folder: KernelFolder) -> None:
        cleaned.append(folder)

    monkeypatch.setattr(own_user, "clean_up_as_owner", clean_up_as_owner)
    await runner.prepare(kernel_folder, "token:ada")
    os.chown(kernel_folder.path, 54003, -1)
    await runner.clean_up(kernel_folder, None)
    assert cleaned == [kernel_folder]
    assert kernel_folder.path.exists()
