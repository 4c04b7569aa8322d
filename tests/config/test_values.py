from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import ConfigError, ListenSettings, values
from relay.model import MAX_NAME
from tests.config.files import AGENT, EDGE, agent, edge


@pytest.mark.parametrize("url", ["http://h:1", "https://[::1]:8451", "https://agent.example:443"])
def test_an_agents_url(file: Path, url: str) -> None:
    text = EDGE.replace("http://127.0.0.1:1", url)
    assert edge(file, text).clusters["alpha"].agents == [url]


@pytest.mark.parametrize(
    ("written", "size"),
    [("5", 5), ("4 KiB", 4096), ("4KiB", 4096), ("3 MiB", 3 << 20), ("1 GiB", 1 << 30), ("7 B", 7)],
)
def test_sizes(file: Path, written: str, size: int) -> None:
    assert agent(file, f"{AGENT}body_bytes: {written}").body_bytes == size
    assert agent(file, AGENT, {"RELAY_BODY_BYTES": written}).body_bytes == size


@pytest.mark.parametrize("written", ["0", "-1", "1.5", "1 MB", "KiB", "1e3", "'1 ki'", "1  KiB"])
def test_what_is_no_size(file: Path, written: str) -> None:
    with pytest.raises(ConfigError, match="body_bytes"):
        agent(file, f"{AGENT}body_bytes: {written}")


def test_a_size_that_is_no_text_passes_unchanged() -> None:
    for value in (5, None, [1]):
        assert values.read_size(value) is value


@pytest.mark.parametrize(
    "url", ["https://h", "http://h:1/a/b?c=d", "https://[::1]/", "https://login.example.org/keys"]
)
def test_a_web_url(url: str) -> None:
    values.check_web_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "h", "/path", "ftp://h", "file:///etc/keys", "https://", "https:///path"),
        *("https://user@h", "https://user:password@h", "https://h/#part"),
        *("https://h/\u00e4", "https://h/\x7f", "https://h/a\x00b"),
    ],
)
def test_a_url_with_credentials_or_for_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^expected"):
        values.check_web_url(url)


@pytest.mark.parametrize(
    ("url", "allow_http", "accepted"),
    [
        ("https://h", False, True),
        ("https://h", True, True),
        ("http://127.0.0.1:1", True, True),
        ("http://[::1]", True, True),
        ("http://localhost", True, True),
        ("http://localhost", False, False),
        ("http://h", True, False),
        ("http://localhost.example", True, False),
        ("http://127.0.0.1.example", True, False),
        ("ftp://h", False, False),
    ],
)
def test_plain_http_is_for_this_machine_only(url: str, allow_http: bool, accepted: bool) -> None:
    if accepted:
        values.check_https(url, allow_http=allow_http)
    else:
        with pytest.raises(ValueError, match="expected https"):
            values.check_https(url, allow_http=allow_http)


def test_a_long_url_is_cut_in_the_error() -> None:
    with pytest.raises(ValueError, match="expected https") as error:
        values.check_https("http://h/" + "x" * 5000, allow_http=False)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("name", ["a", "Ada Lovelace", "\u00e4\u00f6", "x" * MAX_NAME])
def test_a_visible_name(name: str) -> None:
    values.check_visible_name(name)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\u202eb", "x" * (MAX_NAME + 1)])
def test_a_name_that_a_reader_could_mistake_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 255 printable"):
        values.check_visible_name(name)


@pytest.mark.parametrize("principal", ["token:alice", "corp:urn:x:alice", "a-1:Ada Lovelace"])
def test_a_principal(principal: str) -> None:
    values.check_principal(principal)


@pytest.mark.parametrize("principal", ["", "alice", ":alice", "token:", "Token:a", "*:a", "t: a"])
def test_what_names_no_principal_is_refused(principal: str) -> None:
    with pytest.raises(ValueError, match=r"principal|expected"):
        values.check_principal(principal)


def test_a_kernelspec() -> None:
    values.check_kernelspec("conda-env.py_3-x")
    for name in ("", "*", "a/b", "a b", ".."):
        with pytest.raises(ValueError, match="expected a kernelspec's name"):
            values.check_kernelspec(name)


@pytest.mark.parametrize("user", [0, 1000, values.LAST_UID, "alice", "_relay", "a.b-c_1", "x" * 32])
def test_an_os_user(user: int | str) -> None:
    values.check_os_user(user)


@pytest.mark.parametrize(
    "user", [-1, values.LAST_UID + 1, "", "Alice", "1a", "a b", "a\n", "-a", "x" * 33]
)
def test_what_is_no_os_user_is_refused(user: int | str) -> None:
    with pytest.raises(ValueError, match="expected the name of an OS user, or a uid"):
        values.check_os_user(user)


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b'{"keys": [{"kty": "oct", "k": "x"}]}', True),
        (b'{"keys": [{"kty": "OKP", "x": "y"}, {"kty": "OKP", "x": "y", "d": "z"}]}', True),
        (b'{"keys": [{"kty": "OKP", "x": "y"}]}', False),
        (b'{"keys": []}', False),
        (b'{"keys": ["k", "d", 1]}', False),
        (b'{"keys": {"k": 1}}', False),
        (b'["k"]', False),
        (b"", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_a_jwk_set_is_secret_by_its_members(content: bytes, secret: bool) -> None:
    assert values.is_secret_jwks(content) is secret


def test_two_listeners_have_two_addresses() -> None:
    one = ListenSettings(host="127.0.0.1", port=1)
    with pytest.raises(ValueError, match="https and wss need different ports"):
        values.check_distinct_ports(one, one)
    values.check_distinct_ports(one, ListenSettings(host="127.0.0.2", port=1))
    free = ListenSettings(port=0)
    values.check_distinct_ports(free, free)
