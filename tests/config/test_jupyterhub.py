from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.config import ConfigError, EdgeConfig, JupyterHubSettings, load
from relay.config.jupyterhub import HubAccess, base_url

ENVIRON = {
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api/",
    "JUPYTERHUB_API_TOKEN": "secret",
    "JUPYTERHUB_SERVICE_NAME": "relay",
    "JUPYTERHUB_SERVICE_PREFIX": "/services/relay/",
    "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:services!service=relay"]',
}
"""As a Hub sets it for a service."""
NEEDED = frozenset({"access:services!service=relay"})


def without(*names: str, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in ENVIRON.items() if key not in names}
    return {**kept, **more}


def test_a_service_of_the_hubs_needs_no_settings() -> None:
    access = HubAccess.read(JupyterHubSettings(), ENVIRON)
    assert access == HubAccess("http://127.0.0.1:8081/hub/api", NEEDED, "secret")


def test_settings_beat_variables(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("other\n")
    settings = JupyterHubSettings(
        api_url="https://hub/hub/api",
        service_name="kernels",
        api_token_file=str(tmp_path / "token"),
    )
    needed = frozenset({"access:services!service=kernels"})
    assert HubAccess.read(settings, ENVIRON) == HubAccess("https://hub/hub/api", needed, "other")
    settings = msgspec.structs.replace(settings, access_scopes=["access:services!service=x"])
    assert HubAccess.read(settings, ENVIRON).access_scopes == {"access:services!service=x"}


@pytest.mark.parametrize(
    ("written", "needed"),
    [
        ('["access:services!service=a","access:services!service=b"]', {"a", "b"}),
        ("[]", {"relay"}),
        ("", {"relay"}),
    ],
)
@pytest.mark.parametrize("name", ["JUPYTERHUB_OAUTH_ACCESS_SCOPES", "JUPYTERHUB_OAUTH_SCOPES"])
def test_the_hub_says_which_scopes_are_needed(name: str, written: str, needed: set[str]) -> None:
    environ = without("JUPYTERHUB_OAUTH_ACCESS_SCOPES", **{name: written})
    access = HubAccess.read(JupyterHubSettings(), environ)
    assert access.access_scopes == {f"access:services!service={each}" for each in needed}


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        (without("JUPYTERHUB_API_URL"), "api_url"),
        (without(JUPYTERHUB_API_URL="ftp://hub"), "expected http"),
        (without("JUPYTERHUB_API_TOKEN"), "api_token_file"),
        (without(JUPYTERHUB_API_TOKEN=" "), "api_token_file"),
        (without(JUPYTERHUB_API_TOKEN="a\nb"), "api_token_file"),
        (without("JUPYTERHUB_SERVICE_NAME", "JUPYTERHUB_OAUTH_ACCESS_SCOPES"), "service_name"),
        (without(JUPYTERHUB_OAUTH_ACCESS_SCOPES="access:services"), "access_scopes"),
        (without(JUPYTERHUB_OAUTH_ACCESS_SCOPES="[7]"), "access_scopes"),
        # What a user's own server is given is nobody's way to this service.
        (without(JUPYTERHUB_OAUTH_ACCESS_SCOPES='["access:servers!user=a"]'), "access_scopes"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], setting: str) -> None:
    with pytest.raises(ValueError, match=setting) as caught:
        HubAccess.read(JupyterHubSettings(), environ)
    assert "secret" not in str(caught.value)


def test_who_reports_nothing_needs_no_token() -> None:
    settings = JupyterHubSettings(activity_interval=0.0)
    assert HubAccess.read(settings, without("JUPYTERHUB_API_TOKEN")).token == ""


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = JupyterHubSettings(api_token_file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"\Aapi_token_file: "):
        HubAccess.read(settings, ENVIRON)


def test_the_prefix_is_the_hubs_where_it_is_not_set() -> None:
    assert base_url("", JupyterHubSettings(), ENVIRON) == "/services/relay"
    assert base_url("/x", JupyterHubSettings(), ENVIRON) == "/x"
    # Nothing is taken from a Hub that nobody named, as in a terminal of a user's server.
    assert base_url("", None, ENVIRON) == ""
    assert base_url("", JupyterHubSettings(), {}) == ""


@pytest.mark.parametrize("path", ["services", "/a//b", "/a/../b", "/.", "/a b", "/%61", "/a?b"])
def test_a_prefix_that_could_be_read_in_two_ways_is_refused(path: str) -> None:
    environ = without(JUPYTERHUB_SERVICE_PREFIX=path)
    with pytest.raises(ValueError, match=r"\Abase_url: \$JUPYTERHUB_SERVICE_PREFIX: "):
        base_url("", JupyterHubSettings(), environ)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api_url", "hub:8081"),
        ("api_url", "http://user:pass@hub/api"),
        ("api_url", "http://hub/api?x=1"),
        ("api_url", "http://hub/api#x"),
        ("service_name", ""),
        ("service_name", "a/b"),
        ("service_name", "relay!user=x"),
        ("access_scopes", ["access:servers"]),
        ("access_scopes", ["access:services!user=x"]),
        ("cache", 0),
        ("cache", 60.1),
        ("cache_unknown", -1),
        ("cache_unknown", 61),
        ("cache_size", 0),
        ("timeout", 0),
        ("max_requests", 0),
        ("activity_interval", -1),
        ("token", "secret"),
    ],
)
def test_settings_are_checked(tmp_path: Path, key: str, value: Any) -> None:
    written = {
        "tls": {"certificate": "a", "key": "b"},
        "clusters": {"alpha": {"agents": ["http://127.0.0.1:1"]}},
        "authentication": {"jupyterhub": {key: value}},
        "ticket_key": "c",
    }
    (tmp_path / "edge.yaml").write_text(json.dumps(written))
    with pytest.raises(ConfigError) as caught:
        load(EdgeConfig, tmp_path / "edge.yaml", {})
    assert all(key in problem.path for problem in caught.value.problems)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("key", "value"), [("cache", 60), ("cache_unknown", 0), ("cache", 0.1)])
def test_settings_at_their_limits_pass(tmp_path: Path, key: str, value: Any) -> None:
    written = {
        "tls": {"certificate": "a", "key": "b"},
        "base_url": "/services/relay",
        "clusters": {"alpha": {"agents": ["http://127.0.0.1:1"]}},
        "authentication": {"jupyterhub": {key: value}},
        "ticket_key": "c",
    }
    (tmp_path / "edge.yaml").write_text(json.dumps(written))
    loaded = load(EdgeConfig, tmp_path / "edge.yaml", {})
    assert loaded.authentication.chainable == ["jupyterhub"]
