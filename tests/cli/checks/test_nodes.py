from __future__ import annotations

from typing import Any

import pytest

from relay.cli.checks.nodes import findings_among
from tests.cli.checks.conftest import Place

HERE = "https://127.0.0.1:8451"
GPU = "https://gpu.example:8451"


@pytest.mark.parametrize(
    ("urls", "numbers"),
    [
        ([HERE, "https://127.0.0.1:8452"], []),
        ([HERE, "https://localhost:8452", "https://[::1]:8453"], []),
        ([GPU, "https://GPU.example:8452"], []),
        ([GPU, "https://gpu2.example:8451"], [1]),
        ([HERE, GPU], [1]),
        ([GPU, "https://gpu.example:8452", "https://10.1.2.3:8451", HERE], [2, 3]),
    ],
)
def test_the_agents_of_a_cluster_are_on_one_host(
    place: Place, look: Any, urls: list[str], numbers: list[int]
) -> None:
    place.edge["clusters"] = {"alpha": {"agents": urls}, "beta": {"agents": [GPU]}}
    expected = [("error", f"clusters.alpha.agents.{number}") for number in numbers]
    assert look(place.edge_config()) == expected


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"listen": {"port": 8452}}, []),
        ({"state_dir": "etc/../state"}, []),
        ({"state_dir": "link"}, []),
        ({"state_dir": "other"}, [("error", "state_dir")]),
        ({"state_dir": "other", "cluster": "beta"}, []),
    ],
)
def test_the_agents_of_a_cluster_share_a_state_folder(
    place: Place, look: Any, changes: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    (place.folder / "etc").mkdir()
    (place.folder / "link").symlink_to("state")
    first = place.agent_config()
    place.agent |= changes
    assert look(findings_among(place.agent_config(), first, "agent.yaml:3")) == found
