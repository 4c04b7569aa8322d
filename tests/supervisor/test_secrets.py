from __future__ import annotations

import getpass
import ssl
from pathlib import Path

import pytest

from relay import pki
from relay.auth.tokens import TokenStore, generate
from relay.config import ListenSettings, UpConfig
from relay.model import Principal
from relay.processes import StartError
from relay.supervisor import secrets
from relay.supervisor.state import StateFolder

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    found = StateFolder(tmp_path / "state")
    found.create()
    return found


def files(folder: StateFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file()
    }


def store(folder: StateFolder) -> TokenStore:
    return TokenStore.parse(folder.tokens.read_bytes())


def test_everything_is_made_once(folder: StateFolder) -> None:
    token = secrets.provide(folder, UpConfig(), NOW)
    made = files(folder)
    assert set(made) == {
        "pki/ca.pem",
        "pki/ca.key",
        "pki/server.pem",
        "pki/server.key",
        "keys/ticket.key",
        "keys/ticket.pub",
        "tokens.json",
        "first-token",
    }
    assert all((folder.path / name).stat().st_mode & 0o777 == 0o600 for name in made)
    assert secrets.provide(folder, UpConfig(), NOW + DAY) == token
    assert files(folder) == made


def test_what_is_made_in_a_folder_that_others_enter_is_for_its_owner_alone(
    folder: StateFolder,
) -> None:
    for part in ("", "pki", "keys"):
        (folder.path / part).chmod(0o755)
    secrets.provide(folder, UpConfig(), NOW)
    folder.tokens.chmod(0o644)
    folder.first_token.unlink()
    secrets.provide(folder, UpConfig(), NOW)
    made = files(folder)
    assert {(folder.path / name).stat().st_mode & 0o777 for name in made} == {0o600}


def test_the_token_is_good_and_kept_as_a_hash(folder: StateFolder) -> None:
    token = secrets.provide(folder, UpConfig(), NOW)
    found = store(folder).authenticate(token, NOW)
    assert found is not None
    assert found.principal == Principal("token", secrets.user_name())
    assert token.encode() not in folder.tokens.read_bytes()


def test_what_is_made_can_be_served(folder: StateFolder) -> None:
    secrets.provide(folder, UpConfig(), NOW)
    certificate, key = folder.server
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_only_the_server_certificate_is_renewed(folder: StateFolder) -> None:
    secrets.provide(folder, UpConfig(), NOW)
    before = files(folder)
    secrets.provide(folder, UpConfig(), NOW + 340 * DAY)
    after = files(folder)
    assert {name for name in after if after[name] != before[name]} == {
        "pki/server.pem",
        "pki/server.key",
    }


def test_a_new_address_is_a_new_certificate(folder: StateFolder) -> None:
    secrets.provide(folder, UpConfig(), NOW)
    before = files(folder)
    config = UpConfig(wss=ListenSettings(host="192.0.2.7", port=1))
    secrets.provide(folder, config, NOW)
    assert files(folder)["pki/server.pem"] != before["pki/server.pem"]
    assert files(folder)["pki/ca.pem"] == before["pki/ca.pem"]


def test_half_a_pair_is_made_whole(folder: StateFolder) -> None:
    secrets.provide(folder, UpConfig(), NOW)
    folder.ticket_keys[0].unlink()
    secrets.provide(folder, UpConfig(), NOW)
    public, private = folder.ticket_keys
    assert pki.ticket_keys_are_usable(pki.PemPair(public.read_bytes(), private.read_bytes()))


def test_a_new_authority_signs_a_new_server(folder: StateFolder) -> None:
    secrets.provide(folder, UpConfig(), NOW)
    before = files(folder)
    folder.authority[0].write_bytes(b"junk")
    secrets.provide(folder, UpConfig(), NOW)
    assert files(folder)["pki/server.pem"] != before["pki/server.pem"]


@pytest.mark.parametrize("content", [None, "", "relay_unknown\n", "\xff"])
def test_a_lost_first_token_is_replaced_beside_the_others(
    folder: StateFolder, content: str | None
) -> None:
    old = secrets.provide(folder, UpConfig(), NOW)
    if content is None:
        folder.first_token.unlink()
    else:
        folder.first_token.write_text(content, encoding="latin-1")
    new = secrets.provide(folder, UpConfig(), NOW)
    assert new != old
    assert folder.first_token.read_text() == f"{new}\n"
    assert store(folder).authenticate(new, NOW)
    assert store(folder).authenticate(old, NOW)


def test_an_expired_first_token_is_replaced(folder: StateFolder) -> None:
    token, record = generate("me", NOW, lifetime=10)
    folder.first_token.write_text(token)
    folder.tokens.write_bytes(TokenStore([record]).dump())
    assert secrets.provide(folder, UpConfig(), NOW + 5) == token
    assert secrets.provide(folder, UpConfig(), NOW + 10) != token


def test_a_damaged_token_file_is_not_replaced(folder: StateFolder) -> None:
    folder.tokens.write_text("{")
    with pytest.raises(StartError, match=r"tokens\.json is damaged"):
        secrets.provide(folder, UpConfig(), NOW)
    assert folder.tokens.read_text() == "{"


def test_names_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    everywhere = ListenSettings(host="0.0.0.0", port=1)  # noqa: S104 - not listened on
    named = ListenSettings(host="relay.example", port=2)
    config = UpConfig(https=everywhere, wss=named)
    assert secrets.server_names(config) == (
        "localhost",
        "127.0.0.1",
        "::1",
        "box",
        "relay.example",
    )
    monkeypatch.setattr("socket.gethostname", lambda: "b\xf6x")
    assert secrets.server_names(UpConfig()) == ("localhost", "127.0.0.1", "::1")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", missing)
    assert secrets.user_name() == "relay"
    monkeypatch.setattr(getpass, "getuser", lambda: " ")
    assert secrets.user_name() == "relay"
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    assert secrets.user_name() == "ada"
