from __future__ import annotations

from typing import Any

import pytest

from relay.cli.checks import findings_of
from tests.cli.checks.conftest import Place


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV"),
        *("JPY_PARENT_PID", "NODE_OPTIONS", "PERL5LIB", "R_PROFILE", "IPYTHONDIR", "ENV"),
    ],
)
def test_variables_that_decide_what_runs(place: Place, look: Any, name: str) -> None:
    for kind in (place.agent, place.up):
        kind["environment"] = {"allowed": ["OMP_NUM_THREADS", name]}
    expected = [("warning", "environment.allowed.1")]
    assert look(place.agent_config()) == look(place.up_config()) == expected


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "PROJECT", "MY_PATH", "DATASET", "HTTP_PROXY"])
def test_other_variables(place: Place, look: Any, name: str) -> None:
    place.agent["environment"] = {"allowed": [name]}
    assert look(place.agent_config()) == []


def test_free_parameters(place: Place, look: Any) -> None:
    for kind in (place.agent, place.up):
        kind["kernels"] = {"allow_free_parameters": True}
    expected = [("warning", "kernels.allow_free_parameters")]
    assert look(place.agent_config()) == look(place.up_config()) == expected


def test_one_os_user_for_all_kernels_is_said(place: Place, look: Any) -> None:
    """Without it only one user starts kernels, or each has an OS user of their own."""
    assert look(place.agent_config()) == look(place.up_config()) == []
    for kind in (place.agent, place.up):
        kind["shared_uid"] = True
    for settings in (place.agent_config(), place.up_config()):
        (found,) = findings_of(settings)
        assert (found.severity, found.path) == ("warning", "shared_uid")
        assert "users are not isolated" in found.text
