from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The place of a settings file, which a test writes."""
    return tmp_path / "relay.yaml"
