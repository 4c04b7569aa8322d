from __future__ import annotations

import pytest

from relay.routing.clusters import RESERVED, check_name, is_vscode_probe
from relay.routing.paths import Target, parse_target


@pytest.mark.parametrize("name", ["a", "alpha", "gpu-01", "a-", "x" * 31, "tt", "apis", "loginx"])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "-a",
        "_a",
        "Alpha",
        "ALPHA",
        "alpha beta",
        "alpha\n",
        " alpha",
        "alpha.beta",
        "alpha/beta",
        "alpha_beta",
        "..",
        "%61lpha",
        "alph\u00e4",
        "\uff41lpha",
        "alph\u0131\u0307",
        "a\0",
        "x" * 32,
    ],
)
def test_names_of_the_wrong_form(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 31"):
        check_name(name)


@pytest.mark.parametrize("name", ["http", "https", "my-http", "xhttpx", "http-2"])
def test_names_that_the_gateway_client_would_rewrite(name: str) -> None:
    with pytest.raises(ValueError, match="http"):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("t", "api", "kernelspecs", "metrics", "healthz", "readyz", "sd", "status", "hub"),
        *("login", "tree", "services", "openapi"),
    ],
)
def test_reserved_names(name: str) -> None:
    assert name in RESERVED
    with pytest.raises(ValueError, match="reserved"):
        check_name(name)


@pytest.mark.parametrize("raw", ["/alpha/tree?", "/alpha/tree", "/nowhere/login?", "/b/hub/api"])
def test_probes_of_vscode(raw: str) -> None:
    assert is_vscode_probe(parse_target(raw))


@pytest.mark.parametrize(
    "raw",
    [
        "/",
        "/alpha",
        "/alpha/",
        "/tree",
        "/login",
        "/hub/api",
        "/alpha/tree/",
        "/alpha/tree/x",
        "/alpha/Tree",
        "/alpha/treex",
        "/alpha/login/",
        "/alpha/login/api",
        "/alpha/hub",
        "/alpha/hub/",
        "/alpha/hub/api/",
        "/alpha/hub/api/user",
        "/alpha/hub/login",
        "/alpha/api",
        "/alpha/api/kernels",
        "/alpha/api/tree",
        "/alpha/beta/tree",
        "/alpha/api?/tree",
        "/alpha/api?tree",
        "/?/alpha/tree",
        "/api/tree",
        "/hub/tree",
        "/t/login",
        "/Alpha/tree",
        "/http/tree",
        "/metrics/login",
    ],
)
def test_everything_else_is_no_probe(raw: str) -> None:
    assert not is_vscode_probe(parse_target(raw))


@pytest.mark.parametrize("segments", [("", "tree"), ("alpha/tree",), ("alpha", "hub/api")])
def test_segments_that_only_look_like_a_probe(segments: tuple[str, ...]) -> None:
    assert not is_vscode_probe(Target(segments, "/alpha/tree", ""))
