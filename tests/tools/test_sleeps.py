from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import sleeps


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("async def f():\n    await asyncio.sleep(0)", []),
        ("async def f():\n    await asyncio.sleep(0.1)", ["f"]),
        ("async def f():\n    await asyncio.sleep(seconds)", ["f"]),
        ("async def f():\n    await asyncio.sleep(delay=1)", ["f"]),
        ("def f():\n    time.sleep(1)", ["f"]),
        ("def f():\n    sleep(1)", ["f"]),
        ("class A:\n    def f(self):\n        time.sleep(1)", ["A.f"]),
        ("time.sleep(1)", [""]),
        ("@virtual\nasync def f():\n    await asyncio.sleep(60)", []),
        ("@virtual\n@other\nasync def f():\n    await asyncio.sleep(60)", []),
        ("@other\nasync def f():\n    await asyncio.sleep(60)", ["f"]),
        ("async def f():\n    await elapse(60)", []),
    ],
)
def test_a_sleep_is_noticed_unless_its_time_is_virtual(
    tmp_path: Path, text: str, found: list[str]
) -> None:
    plant(tmp_path, {"tests/edge/test_a.py": text})
    assert keys(sleeps.check, tmp_path) == [f"tests/edge/test_a.py:{name}" for name in found]


def test_real_programs_may_be_waited_for(tmp_path: Path) -> None:
    files = [f"tests/{folder}/a.py" for folder in ("system", "chaos", "fixtures")]
    plant(tmp_path, dict.fromkeys(files, "time.sleep(1)"))
    assert keys(sleeps.check, tmp_path) == []
