from __future__ import annotations

from pathlib import Path

import pytest

from tools.sources import sources
from tools.structure import Shape, figures, shape

FILES = {
    "relay/edge/__init__.py": "",
    "relay/edge/worker.py": "from relay.edge.http.forward import forward\nimport relay.edge.reload",
    "relay/edge/reload.py": "from relay import edge",
    "relay/edge/http/__init__.py": "",
    "relay/edge/http/forward.py": (
        "from relay.edge.upstream import client\nfrom relay.edge import http"
    ),
    "relay/edge/upstream/client.py": "import os",
}


def planted(root: Path, **more: str) -> list[Path]:
    paths = []
    for name, text in {**FILES, **more}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths


def test_rooms_floors_and_arrows_of_a_program(tmp_path: Path) -> None:
    planted(tmp_path)
    found = shape(list(sources(tmp_path, "relay")), "edge")
    # worker → http → upstream, and worker → reload: a room's imports of itself do not count.
    assert found == Shape(files=5, rooms=4, floors=3, arrows=3)


def test_a_circle_is_no_figure(tmp_path: Path) -> None:
    planted(tmp_path, **{"relay/edge/upstream/client.py": "from relay.edge.worker import run"})
    with pytest.raises(ValueError, match="a circle: "):
        shape(list(sources(tmp_path, "relay")), "edge")


def test_the_project_has_no_circle_and_all_its_figures() -> None:
    root = Path(__file__).parents[2]
    found = dict(figures(root))
    assert set(found) > {"edge", "agent", "holder"}
    assert all(" floors, " in found[program] for program in ("edge", "agent", "holder"))
