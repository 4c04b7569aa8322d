from __future__ import annotations

import pytest

from relay.routing.clusters import RESERVED, check_name, is_cluster_name


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


@pytest.mark.parametrize(
    ("name", "valid"), [("alpha", True), ("http", False), ("api", False), ("Alpha", False)]
)
def test_whether_it_is_a_name(name: str, valid: bool) -> None:
    assert is_cluster_name(name) is valid
