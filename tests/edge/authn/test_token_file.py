from __future__ import annotations

import time
from pathlib import Path

import pytest

from relay.auth.chain import Authenticator
from relay.auth.tokens import TokenRecord, TokenStore, generate
from relay.config import TokenSettings
from relay.edge.authn.token_file import PathTokens, TokenFile
from relay.metrics import EdgeMetrics

NOW = time.time()
TOKEN, RECORD = generate("alice", NOW, lifetime=60.0)
PATH, PATH_RECORD = generate("alice", NOW, lifetime=30.0, path=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_bytes(TokenStore([RECORD]).dump())
    return path


def read(file: Path, metrics: EdgeMetrics | None = None) -> TokenFile:
    return TokenFile(TokenSettings(file=str(file)), metrics or EdgeMetrics.local())


def write(file: Path, *records: TokenRecord) -> None:
    """As the command does: another file takes its place."""
    new = file.with_name("new")
    new.write_bytes(TokenStore(records).dump())
    new.replace(file)


async def test_a_token_file_passes_on_what_it_does_not_know(file: Path) -> None:
    tokens: Authenticator = read(file)
    assert await tokens.authenticate("another's", NOW) is None


@pytest.mark.parametrize(("longest", "known"), [(30.0, True), (29.0, False)])
async def test_path_tokens_are_known_by_an_authenticator_of_their_own(
    file: Path, longest: float, known: bool
) -> None:
    write(file, RECORD, PATH_RECORD)
    tokens = read(file)
    in_path = PathTokens(tokens, longest)
    assert (await in_path.authenticate(PATH, NOW) is not None) is known
    assert await in_path.authenticate(TOKEN, NOW) is None
    assert await tokens.authenticate(PATH, NOW) is None


# A file that changes


async def test_a_changed_file_counts_at_the_next_look(file: Path) -> None:
    tokens = read(file)
    assert not tokens.look()
    other, record = generate("bob", NOW)
    write(file, RECORD, record)
    assert await tokens.authenticate(other, NOW) is None
    assert tokens.look()
    assert await tokens.authenticate(other, NOW) is not None
    write(file, record)
    assert tokens.look()
    assert await tokens.authenticate(TOKEN, NOW) is None
    assert not tokens.look()


async def test_a_file_that_is_written_in_place_counts_too(file: Path) -> None:
    tokens = read(file)
    file.write_bytes(TokenStore([]).dump())
    assert tokens.look()
    assert await tokens.authenticate(TOKEN, NOW) is None


def test_the_same_tokens_in_another_file_are_no_change(file: Path) -> None:
    tokens = read(file)
    write(file, RECORD)
    assert not tokens.look()


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"tokens": [', b"[" * 100_000, None])
async def test_a_file_that_cannot_be_used_any_more_changes_nothing(
    file: Path, damage: bytes | None
) -> None:
    metrics = EdgeMetrics.local()
    tokens = read(file, metrics)
    failures = metrics.refused_token_files._value
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert not tokens.look()
    assert not tokens.look()
    # Said once, not at each look.
    assert failures.get() == 1
    assert await tokens.authenticate(TOKEN, NOW) is not None
    assert await tokens.authenticate("relay_other", NOW) is None
    write(file)
    assert tokens.look()
    assert await tokens.authenticate(TOKEN, NOW) is None
