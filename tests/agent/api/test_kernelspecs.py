from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from relay.agent.api.kernelspecs import KernelSpecs
from relay.auth.policy import Action, Rights
from relay.errors import NotFound

ALL = Rights({Action.START: None})
SPEC = {"argv": ["true", "{connection_file}"], "display_name": "Nothing", "language": "none"}


class Folder:
    """A Jupyter data folder, the only one that is searched."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, *files: str, **more: Any) -> Path:
        folder = self.path / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(SPEC | more))
        for file in files:
            (folder / file).write_bytes(b"x")
        return folder


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    folder = Folder(tmp_path / "jupyter")
    monkeypatch.setattr(
        "jupyter_client.kernelspec.jupyter_path", lambda *parts: [str(folder.path.joinpath(*parts))]
    )
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return folder


@pytest.fixture
def specs(jupyter: Folder) -> KernelSpecs:
    found = KernelSpecs("/alpha")
    # The interpreter's own kernel is found wherever the test runs.
    found._manager.ensure_native_kernel = False
    return found


async def test_a_kernelspec_is_shown_as_jupyter_shows_it(
    jupyter: Folder, specs: KernelSpecs
) -> None:
    jupyter.add("one", "logo-64x64.png", "logo-svg.svg", "kernel.js", "kernel.css", "other.png")
    model = await specs.get("one", ALL)
    assert model["name"] == "one"
    assert model["spec"].items() >= SPEC.items()
    assert model["resources"] == {
        "kernel.js": "/alpha/kernelspecs/one/kernel.js",
        "kernel.css": "/alpha/kernelspecs/one/kernel.css",
        "logo-64x64": "/alpha/kernelspecs/one/logo-64x64.png",
        "logo-svg": "/alpha/kernelspecs/one/logo-svg.svg",
    }
    assert await specs.all(ALL) == {"default": "one", "kernelspecs": {"one": model}}


async def test_what_a_kernelspec_brings_along_is_kept(jupyter: Folder, specs: KernelSpecs) -> None:
    jupyter.add("one", env={"A": "b"}, metadata={"c": [1]}, interrupt_mode="message")
    spec = (await specs.get("one", ALL))["spec"]
    assert (spec["env"], spec["metadata"]) == ({"A": "b"}, {"c": [1]})
    assert spec["interrupt_mode"] == "message"


@pytest.mark.parametrize("name", ["two", "", "..", "one/", "../kernels/one"])
async def test_an_unknown_kernelspec_is_not_found(
    jupyter: Folder, specs: KernelSpecs, name: str
) -> None:
    jupyter.add("one", "logo-64x64.png")
    with pytest.raises(NotFound):
        await specs.get(name, ALL)
    with pytest.raises(NotFound):
        await specs.resource(name, ("logo-64x64.png",), ALL)


@pytest.mark.parametrize(
    ("names", "default"),
    [(["ir", "python3", "a"], "python3"), (["julia", "ir"], "ir"), (["xpython"], "xpython")],
)
async def test_the_default_is_python3_or_the_first(
    jupyter: Folder, specs: KernelSpecs, names: list[str], default: str
) -> None:
    for name in names:
        jupyter.add(name)
    assert await specs.default(ALL) == default
    assert (await specs.all(ALL))["default"] == default


async def test_without_kernelspecs_there_is_no_list(specs: KernelSpecs) -> None:
    for ask in (specs.default(ALL), specs.all(ALL)):
        with pytest.raises(NotFound, match="no kernelspecs"):
            await ask


# Whose they are


async def test_what_one_may_not_start_is_not_there(jupyter: Folder, specs: KernelSpecs) -> None:
    for name in ("python3", "ir", "julia"):
        jupyter.add(name, "logo-64x64.png")
    some = Rights({Action.START: frozenset({"julia", "ir", "absent"}), Action.USE: None})
    found = await specs.all(some)
    assert (found["default"], set(found["kernelspecs"])) == ("ir", {"ir", "julia"})
    assert await specs.default(some) == "ir"
    assert (await specs.get("julia", some))["name"] == "julia"
    await specs.resource("julia", ("logo-64x64.png",), some)
    for name in ("python3", "Python3", "PYTHON3"):
        with pytest.raises(NotFound, match=f"There is no kernelspec named '{name}'"):
            await specs.get(name, some)
        with pytest.raises(NotFound, match="no such kernelspec resource"):
            await specs.resource(name, ("logo-64x64.png",), some)


@pytest.mark.parametrize(
    "rights",
    [
        Rights(),
        Rights(dict.fromkeys(set(Action) - {Action.START})),
        Rights({Action.START: frozenset()}),
        Rights({Action.START: frozenset({"On", "one "}), Action.ADMIN: None}),
    ],
)
async def test_who_may_start_nothing_is_told_so(
    jupyter: Folder, specs: KernelSpecs, rights: Rights
) -> None:
    jupyter.add("one", "logo-64x64.png")
    asked = [specs.all(rights), specs.default(rights), specs.get("one", rights)]
    for each in (*asked, specs.resource("one", ("logo-64x64.png",), rights)):
        with pytest.raises(NotFound):
            await each


async def test_a_new_kernelspec_is_seen_at_once(jupyter: Folder, specs: KernelSpecs) -> None:
    jupyter.add("one")
    await specs.get("one", ALL)
    jupyter.add("two")
    assert set((await specs.all(ALL))["kernelspecs"]) == {"one", "two"}


async def test_resources_are_files_of_the_folder(jupyter: Folder, specs: KernelSpecs) -> None:
    folder = jupyter.add("one", "logo-64x64.png")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file.js").touch()
    logo = await specs.resource("one", ("logo-64x64.png",), ALL)
    assert logo == (folder / "logo-64x64.png").resolve()
    script = await specs.resource("one", ("deep", "er", "file.js"), ALL)
    assert script == (folder / "deep" / "er" / "file.js").resolve()


@pytest.mark.parametrize(
    "file",
    [
        ("missing.png",),
        (),
        ("deep",),
        ("..", "two", "secret"),
        ("..", "..", "secret"),
        ("deep", "..", "..", "two", "secret"),
        ("../two/secret",),
        ("/etc/passwd",),
        ("kernel.json", "x"),
        ("x\0y",),
        ("x" * 300,),
        ("x/" * 3000,),
        ("to_the_file",),
        ("to_the_folder", "secret"),
        ("to_the_root", "etc", "passwd"),
        ("to_itself",),
        ("to_nowhere",),
        ("a_pipe",),
    ],
)
async def test_nothing_outside_of_the_folder_is_served(
    jupyter: Folder, specs: KernelSpecs, file: tuple[str, ...]
) -> None:
    folder = jupyter.add("one", "kernel.js")
    (jupyter.path / "secret").touch()
    other = jupyter.add("two", "secret")
    (folder / "deep").mkdir()
    (folder / "to_the_file").symlink_to(other / "secret")
    (folder / "to_the_folder").symlink_to(other)
    (folder / "to_the_root").symlink_to("/")
    (folder / "to_itself").symlink_to("to_itself")
    (folder / "to_nowhere").symlink_to("nowhere")
    os.mkfifo(folder / "a_pipe")
    with pytest.raises(NotFound, match="no such kernelspec resource"):
        await specs.resource("one", file, ALL)


async def test_a_link_within_the_folder_may_be_followed(
    jupyter: Folder, specs: KernelSpecs
) -> None:
    folder = jupyter.add("one", "logo-64x64.png")
    (folder / "logo-32x32.png").symlink_to("logo-64x64.png")
    logo = await specs.resource("one", ("logo-32x32.png",), ALL)
    assert logo == (folder / "logo-64x64.png").resolve()


async def test_a_folder_that_is_a_link_itself_is_served(
    jupyter: Folder, specs: KernelSpecs, tmp_path: Path
) -> None:
    folder = jupyter.add("one", "logo-64x64.png")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    logo = await specs.resource("one", ("logo-64x64.png",), ALL)
    assert logo == tmp_path.resolve() / "elsewhere" / "logo-64x64.png"
