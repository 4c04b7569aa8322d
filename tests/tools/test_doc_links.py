from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import plant
from tools import doc_links

PAGES = {
    "docs/target.md": "# The first part\n\n## Kernels & sessions: `how`?\n\n## Twice\n\n## Twice\n",
    "docs/decisions/0001.md": "",
    "relay/edge/rest.py": "",
    "tests/system/test_kills.py": "def test_a_kill() -> None: ...",
    "deploy/systemd/unit": "",
}


def found(root: Path, page: str, text: str) -> list[str]:
    plant(root, {**PAGES, page: text})
    return [finding.text.removesuffix(" does not exist") for finding in doc_links.check(root)]


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/target.md)",
        "[a](docs/target.md#the-first-part)",
        "[a](docs/target.md#kernels--sessions-how)",
        "[a](docs/target.md#twice-1)",
        "[a](docs/decisions/)",
        "[a](https://example.org/no/such.md#x)",
        "# Here\n\n[a](#here)",
        "`relay/edge/rest.py`, `edge/rest.py`, `tests/`, `deploy/systemd/`",
        "`system/test_kills.py`, `elsewhere/unit`, `relay up`, `text/html`",
        "```\n[a](none.md) `relay/none.py`\n```",
        "[a]: docs/target.md",
        "`.venv/bin/pytest tests/system/test_kills.py -k a_kill`",
    ],
)
def test_what_leads_somewhere_is_left_alone(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, "README.md", text) == []


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[a](docs/none.md)", "docs/none.md"),
        ("[a\nb](docs/none.md)", "docs/none.md"),
        ("[a](docs/target.md#twice-2)", "docs/target.md#twice-2"),
        ("[a](docs/target.md#Twice)", "docs/target.md#Twice"),
        ("[a](#nowhere)", "#nowhere"),
        ("[a]: docs/none.md", "docs/none.md"),
        ("`relay/edge/none.py`", "relay/edge/none.py"),
        ("`edge/none.py`", "edge/none.py"),
        ("`gone/rest.py`", "gone/rest.py"),
        ("`system/test_none.py`", "system/test_none.py"),
        ("`tests/none/`", "tests/none/"),
        ("`deploy/none.service`", "deploy/none.service"),
        ("`pytest tests/system/test_kills.py -k kills`", "tests/system/test_kills.py -k kills"),
        ("`pytest tests/test_none.py -k kill`", "tests/test_none.py -k kill"),
        ("```\n```\n`edge/none.py`", "edge/none.py"),
    ],
)
def test_what_leads_nowhere_is_noticed(tmp_path: Path, text: str, dead: str) -> None:
    line = text.count("\n") + 1
    assert found(tmp_path, "README.md", text) == [f"README.md:{line}: {dead}"]


def test_links_are_relative_to_their_page(tmp_path: Path) -> None:
    text = "[a](../target.md) [b](0001.md) [c](target.md)"
    assert found(tmp_path, "docs/decisions/0002.md", text) == [
        "docs/decisions/0002.md:1: target.md"
    ]
