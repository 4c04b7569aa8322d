from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import privates
from tools.privates import Private
from tools.sources import Source

ROOT = Path(__file__).parents[2]
LISTED = privates.read_privates(ROOT)


@pytest.mark.parametrize("private", LISTED, ids=lambda each: f"{each.owner}.{each.name}")
def test_the_installed_library_has_it(private: Private) -> None:
    assert private.exists()
    assert private.why


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("_no_such_thing", "aiohttp.web_protocol"),
        ("_no_such_thing", "aiohttp.web_protocol.RequestHandler"),
        ("_no_such_thing", "jupyter_client.manager.KernelManager"),
    ],
)
def test_what_a_library_has_no_more_is_noticed(name: str, owner: str) -> None:
    assert not Private(name, owner, "a reason").exists()


def uses(text: str) -> list[str]:
    source = Source(Path("relay/a.py"), text, ast.parse(text))
    return sorted({name for name, _ in privates.uses(source)})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from aiohttp.web_protocol import _ErrInfo", ["_ErrInfo"]),
        ("import aiohttp._helpers", ["_helpers"]),
        ("manager._attempted_start = True", ["_attempted_start"]),
        ("x = app.router._resources", ["_resources"]),
        (
            (
                "from aiohttp import web\n"
                "class R(web.BaseRequest):\n"
                "    async def _prepare_hook(self, response): ...\n"
            ),
            ["_prepare_hook"],
        ),
        (
            "import aiohttp.web as w\nclass S(w.Server):\n    def f(self): return self._kwargs\n",
            ["_kwargs"],
        ),
        (
            (
                "from aiohttp.web_protocol import RequestHandler\n"
                "class C(RequestHandler):\n"
                "    def f(self):\n"
                "        self._own = 1\n"
                "        return self._own, self._messages\n"
            ),
            ["_messages"],
        ),
        ("class A:\n    def f(self):\n        self._x = 1\n        return other._x\n", []),
        ("class A(Other):\n    def f(self): return self._inherited\n", []),
        ("from relay import __version__\nx = point._replace(a=1)\n", []),
        ("import threading\nclass T(threading.Thread):\n    def _stop(self): ...\n", []),
    ],
    ids=range(11),
)
def test_a_private_use_is_seen(text: str, found: list[str]) -> None:
    assert uses(text) == found


def project(root: Path, *, needed: str = "aiohttp>=3,<4", pinned: str = "3.14.5") -> Path:
    owner = "aiohttp.web_protocol"
    return plant(
        root,
        {
            "relay/a.py": "from aiohttp.web_protocol import _ErrInfo",
            "tools/privates.toml": f'[_ErrInfo]\nowners = ["{owner}"]\nwhy = "a reason"\n',
            "pyproject.toml": f'[project]\ndependencies = ["{needed}", "msgspec"]\n',
            "requirements.lock": f"aiohttp=={pinned} \\\n    --hash=sha256:1 \\\nmsgspec==1.0 \\\n",
        },
    )


def test_what_is_listed_used_and_bounded_is_left_alone(tmp_path: Path) -> None:
    assert keys(privates.check, project(tmp_path)) == []


def test_a_use_without_an_entry_is_noticed(tmp_path: Path) -> None:
    plant(project(tmp_path), {"relay/b.py": "x = app._state"})
    (finding,) = privates.check(tmp_path)
    assert finding.text.startswith("relay/b.py:1: _state is private to a library")


def test_an_entry_without_a_use_is_noticed(tmp_path: Path) -> None:
    plant(project(tmp_path), {"relay/a.py": "x = 1"})
    (finding,) = privates.check(tmp_path)
    assert finding.text.endswith("nothing uses _ErrInfo any more")


@pytest.mark.parametrize("needed", ["aiohttp>=3", "aiohttp", "other>=3,<4"])
def test_a_library_without_a_ceiling_is_noticed(tmp_path: Path, needed: str) -> None:
    (finding,) = privates.check(project(tmp_path, needed=needed))
    assert finding.text.startswith("pyproject.toml: aiohttp has no ceiling")


def test_a_pin_beyond_the_ceiling_is_noticed(tmp_path: Path) -> None:
    (finding,) = privates.check(project(tmp_path, pinned="4.0"))
    assert finding.text == "requirements.lock: aiohttp==4.0 is not <4,>=3"
