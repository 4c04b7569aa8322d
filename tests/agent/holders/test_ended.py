from __future__ import annotations

import pytest

from relay.agent.holders import ended
from relay.agent.holders.ended import EndedKernels
from relay.auth.ownership import KernelOwnership
from relay.errors import NotFound

ADAS = KernelOwnership(owner="token:ada", kernelspec="python3")


def test_what_has_ended_is_known_while_its_folder_is_there() -> None:
    kernels = EndedKernels()
    for name in ("a", "b", "c"):
        kernels.add(name)
    kernels.discard("b")
    kernels.keep(["a", "b"])
    assert [name in kernels for name in ("a", "b", "c")] == [True, False, False]


def test_a_reason_is_told_until_the_id_is_anothers() -> None:
    kernels = EndedKernels()
    kernels.explain("a", ADAS, "its holder died too often")
    assert kernels.ownership("a") == ADAS
    with pytest.raises(NotFound, match="too often"):
        kernels.raise_reason("a")
    # The folder is gone at once, and the reason stays.
    kernels.keep([])
    assert kernels.ownership("a") == ADAS
    kernels.forget("a")
    assert kernels.ownership("a") is None
    kernels.raise_reason("a")


def test_reasons_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "_REASONS", 2)
    kernels = EndedKernels()
    for name in ("a", "b", "c"):
        kernels.explain(name, ADAS, "why")
    assert [kernels.ownership(name) for name in ("a", "b", "c")] == [None, ADAS, ADAS]
