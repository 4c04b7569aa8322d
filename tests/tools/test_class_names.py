from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import class_names

HUB = "class Hub: ..."


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["relay/edge/a.py", "relay/edge/http/b.py"], True),
        (["relay/auth/a.py", "relay/bridge/b.py"], True),
        (["relay/auth/a.py", "relay/model.py"], True),
        (["relay/auth/a.py", "relay/edge/b.py"], True),
        (["relay/edge/a.py", "relay/agent/b.py", "relay/holder/c.py"], False),
        (["relay/edge/a.py"], False),
    ],
)
def test_a_name_for_two_things_is_noticed(tmp_path: Path, places: list[str], found: bool) -> None:
    plant(tmp_path, dict.fromkeys(places, HUB))
    assert keys(class_names.check, tmp_path) == (["Hub"] if found else [])


def test_the_report_names_both_files(tmp_path: Path) -> None:
    plant(tmp_path, {"relay/edge/a.py": HUB, "relay/auth/b.py": HUB})
    (finding,) = class_names.check(tmp_path)
    assert "relay/auth/b.py, relay/edge/a.py" in finding.text


def test_private_and_nested_classes_are_nobody_elses(tmp_path: Path) -> None:
    inner = "class _Hub: ...\ndef f():\n    class Hub: ...\n"
    plant(tmp_path, {"relay/edge/a.py": inner, "relay/edge/b.py": inner + HUB})
    assert keys(class_names.check, tmp_path) == []
