from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from relay import tokenfile
from relay.auth.tokens import TokenRecord, TokenStore, generate
from relay.config import (
    AuthenticationSettings,
    ClusterSettings,
    EdgeConfig,
    PathTokenSettings,
    TlsSettings,
    TokenSettings,
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RELAY_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def records(path: Path) -> tuple[TokenRecord, ...]:
    return tokenfile.read(path).records


def configured(folder: Path, path_tokens: PathTokenSettings | None = None) -> Path:
    settings = EdgeConfig(
        tls=TlsSettings(certificate="c", key="k"),
        clusters={"alpha": ClusterSettings(agents=["http://127.0.0.1:1"])},
        authentication=AuthenticationSettings(
            tokens=TokenSettings(file="the-tokens.json"), path_tokens=path_tokens
        ),
        ticket_key="k",
    )
    path = folder / "edge.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.yaml.encode(settings))
    return path


def test_the_token_and_nothing_else_is_printed(relay: Run, state: Path) -> None:
    code, out, err = relay("token", "create", "--user", "alice")
    assert code == 0
    token = out.removesuffix("\n")
    (record,) = records(state / "tokens.json")
    found = TokenStore([record]).authenticate(token, time.time())
    assert found is not None
    assert str(found.principal) == "token:alice"
    assert record.id in err
    assert token not in err
    assert token not in (state / "tokens.json").read_text()
    assert state.stat().st_mode & 0o777 == 0o700


def test_the_file_is_for_its_owner_alone_whatever_it_was(relay: Run, file: Path) -> None:
    file.parent.chmod(0o755)
    for user in ("alice", "bob"):
        assert relay("token", "create", "--user", user, "--file", str(file))[0] == 0
        assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert relay("token", "create", "--user", "carol", "--file", str(file))[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert relay("token", "revoke", records(file)[0].id, "--file", str(file))[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_every_option(relay: Run, file: Path) -> None:
    before = time.time()
    code, _, err = relay(
        *("token", "create", "--user", "bob", "--group", "staff", "--group", "gpu"),
        *("--cluster", "alpha", "--scope", "run", "--ttl", "12h", "--note", "laptop"),
        *("--file", str(file)),
    )
    assert code == 0, err
    (record,) = records(file)
    assert (record.user, record.groups, record.clusters) == ("bob", ("staff", "gpu"), ("alpha",))
    assert (record.scopes, record.note, record.path) == (("run",), "laptop", False)
    assert record.expires is not None
    assert before + 12 * 3600 <= record.expires <= time.time() + 12 * 3600


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("1s", 1), ("90m", 5400), ("2d", 172_800), ("1w", 604_800)]
)
def test_lifetimes(relay: Run, file: Path, ttl: str, seconds: int) -> None:
    assert relay("token", "create", "--user", "a", "--ttl", ttl, "--file", str(file))[0] == 0
    (record,) = records(file)
    assert record.expires == record.created + seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--user'."),
        (["--user", ""], "a user name is 1 to 255"),
        (["--user", " alice"], "a user name is 1 to 255"),
        (["--user", "al\nice"], "a user name is 1 to 255"),
        (["--user", "a", "--group", ""], "a group, scope or cluster is 1 to 255"),
        (["--user", "a", "--scope", "\x1b[2J"], "a group, scope or cluster is 1 to 255"),
        (["--user", "a", "--note", "a\nb"], "a note is at most 255"),
        (["--user", "a", "--cluster", "Alpha"], "--cluster Alpha: a cluster's name is"),
        (["--user", "a", "--cluster", "api"], "--cluster api: the name 'api' is reserved"),
        (["--user", "a", "--ttl", "12"], "--ttl 12: expected a number and one of"),
        (["--user", "a", "--ttl", "0h"], "--ttl 0h: expected a number and one of"),
        (["--user", "a", "--ttl", "-1h"], "--ttl -1h: expected a number and one of"),
        (["--user", "a", "--ttl", "1e3s"], "--ttl 1e3s: expected a number and one of"),
        (["--user", "a", "--path"], "a path token needs a --ttl of at most 43200s"),
        (["--user", "a", "--path", "--ttl", "13h"], "a path token needs a --ttl of at most"),
        (
            ["--user", "a", "--state-dir", "/no"],
            "give only one of --state-dir, --file and --config",
        ),
        (
            ["--user", "a", "--config", "/no/file"],
            "give only one of --state-dir, --file and --config",
        ),
        (["--user", "a", "bob"], "Got unexpected extra argument"),
    ],
)
def test_bad_values_are_one_line_and_make_nothing(
    relay: Run, file: Path, arguments: list[str], message: str
) -> None:
    code, out, err = relay("token", "create", *arguments, "--file", str(file))
    assert (code, out) == (2, "")
    assert err.startswith(f"relay: {message}")
    assert err.count("\n") == 1
    assert not file.exists()


def test_where_no_file_can_be(relay: Run, tmp_path: Path) -> None:
    for command in (["create", "--user", "a"], ["revoke", "x"]):
        code, out, err = relay("token", *command, "--file", str(tmp_path / "no" / "t.json"))
        assert (code, out) == (2, "")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["create", "--user", "a"], ["list"], ["revoke", "x"]])
def test_a_damaged_file_is_left_alone(relay: Run, file: Path, command: list[str]) -> None:
    file.write_text("{}")
    code, out, err = relay("token", *command, "--file", str(file))
    assert (code, out) == (2, "")
    assert err.startswith(f"relay: {file} is damaged: ")
    assert file.read_text() == "{}"


def test_the_file_that_a_configuration_names(relay: Run, tmp_path: Path) -> None:
    config = str(configured(tmp_path / "etc"))
    assert relay("token", "create", "--user", "alice", "--config", config)[0] == 0
    assert len(records(tmp_path / "etc" / "the-tokens.json")) == 1
    assert "alice" in relay("token", "list", "--config", config)[1]
    code, _, err = relay("token", "create", "--user", "a", "--config", "/no/such/file")
    assert (code, err) == (2, "relay: cannot be read: No such file or directory (/no/such/file)\n")


def test_path_tokens_as_an_edge_takes_them(relay: Run, tmp_path: Path) -> None:
    create = ("token", "create", "--user", "alice", "--path", "--config")
    off = str(configured(tmp_path / "off"))
    code, out, err = relay(*create, off, "--ttl", "1h")
    assert (code, out) == (2, "")
    assert "authentication.path_tokens" in err
    on = str(configured(tmp_path / "on", PathTokenSettings(max_lifetime=60.0)))
    code, out, err = relay(*create, on, "--ttl", "61s")
    assert (code, out) == (2, "")
    assert "at most 60s" in err
    code, out, err = relay(*create, on, "--ttl", "60s")
    assert code == 0
    assert out.strip() not in err
    store = tokenfile.read(tmp_path / "on" / "the-tokens.json")
    assert store.authenticate_path(out.strip(), time.time(), 60.0) is not None
    assert "[path]" in relay("token", "list", "--config", on)[1]


def test_what_relay_up_was_configured_with_is_known(relay: Run, state: Path) -> None:
    configured(state / "run")
    code, _, err = relay("token", "create", "--user", "a", "--path", "--ttl", "1h")
    assert code == 2
    assert "path tokens are off" in err


def test_the_list(relay: Run, file: Path) -> None:
    assert relay("token", "list", "--file", str(file)) == (0, "", "There are no tokens.\n")
    made = [
        generate("alice", 0.0, lifetime=60.0, note="old")[1],
        generate("bob", 0.0, groups=["x", "y"], clusters=["alpha"], scopes=["run"])[1],
        msgspec.structs.replace(generate("eve", 0.0)[1], note="\x1b[2Jgone"),
    ]
    tokenfile.write(file, TokenStore(made))
    code, out, err = relay("token", "list", "--file", str(file))
    assert (code, err) == (0, "")
    head, first, second, third = out.splitlines()
    assert head.split() == ["ID", "USER", "GROUPS", "CLUSTERS", "SCOPES", "CREATED", "EXPIRES",
                            "NOTE"]  # fmt: skip
    assert first.split()[:5] == [made[0].id, "alice", "-", "all", "-"]
    assert "1970-01-01 00:01:00Z (expired)" in first
    assert first.endswith("old")
    assert second.split()[:5] == [made[1].id, "bob", "x,y", "alpha", "run"]
    assert second.endswith("never")
    assert "\x1b" not in third
    assert not any(record.hash in out for record in made)


def test_revoking(relay: Run, file: Path) -> None:
    for user in ("alice", "bob"):
        relay("token", "create", "--user", user, "--file", str(file))
    alice, bob = records(file)
    code, out, err = relay("token", "revoke", alice.id, "--file", str(file))
    assert (code, out, err) == (0, "", f"Revoked token {alice.id} of alice.\n")
    assert records(file) == (bob,)
    code, out, err = relay("token", "revoke", alice.id, "--file", str(file))
    assert (code, out, err) == (2, "", f"relay: no token has the id '{alice.id}'\n")
    for wrong in (bob.id[:-1], bob.hash, "bob", "", "*"):
        assert relay("token", "revoke", wrong, "--file", str(file))[0] == 2
    assert records(file) == (bob,)
