from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.origin import OriginMatch, Origins, check_origin

HOST = "relay.example:8443"
OWN = f"https://{HOST}"
LISTED = "https://lab.example", "http://localhost:8888", "https://[::1]:9"
ORIGINS = Origins(LISTED)


def test_who_says_nothing_of_a_page_is_none() -> None:
    assert ORIGINS.classify([], HOST) is OriginMatch.NONE


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (OWN, HOST),
        (OWN, HOST.upper()),
        ("https://relay.example", "relay.example"),
        # Browsers leave it out, others may write it.
        ("https://relay.example", "relay.example:443"),
        ("https://[::1]:8443", "[::1]:8443"),
    ],
)
def test_its_own_pages(origin: str, host: str) -> None:
    assert ORIGINS.classify([origin], host) is OriginMatch.OWN


@pytest.mark.parametrize("origin", LISTED)
def test_the_pages_of_the_list(origin: str) -> None:
    assert ORIGINS.classify([origin], HOST) is OriginMatch.LISTED


OTHERS = (
    "http://lab.example",
    "https://lab.example:8443",
    "https://lab.example.evil",
    "https://evil.lab.example",
    "https://elsewhere.example",
    "https://evillab.example",
    "https://lab_example",
    "https://labxexample",
    "http://localhost",
    "http://[::1]:9",
    "http://relay.example:8443",
    "https://relay.example",
)
"""Origins, and not these."""
ODD = (
    "",
    " ",
    "null",
    "*",
    "https://",
    "https://lab.example:443",
    "https://lab.example/",
    "https://lab.example.",
    "https://lab.example#",
    "https://lab.example?",
    "https://lab.example@evil.example",
    "https://evil.example@lab.example",
    "https://LAB.example",
    "HTTPS://lab.example",
    " https://lab.example",
    "https://lab.example ",
    "https://lab.example\n",
    "https://lab.example, https://lab.example",
    "https://lab.example https://lab.example",
    "https:/lab.example",
    "lab.example",
    "//lab.example",
    "http://localhost:88888",
    "http://localhost:08888",
    "https://[0::1]:9",
    "wss://relay.example:8443",
    "https://relay.example:84430",
    "https://relay.example:8443/",
    "https://x@relay.example:8443",
    "https://relay.example:8443.evil.example",
    "relay.example:8443",
)
"""No origins."""


@pytest.mark.parametrize("origin", [*OTHERS, *ODD])
def test_everything_else_is_foreign(origin: str) -> None:
    assert ORIGINS.classify([origin], HOST) is OriginMatch.FOREIGN


@pytest.mark.parametrize(
    "origins", [[OWN, OWN], [*LISTED], [OWN, "https://elsewhere.example"], ["null", LISTED[0]]]
)
def test_who_says_it_twice_is_foreign(origins: list[str]) -> None:
    assert ORIGINS.classify(origins, HOST) is OriginMatch.FOREIGN


@pytest.mark.parametrize("origin", ["https://", "https:///", "", "null"])
def test_without_a_host_there_is_no_own(origin: str) -> None:
    assert Origins().classify([origin], "") is OriginMatch.FOREIGN


@given(st.text())
def test_no_text_is_of_a_list_that_does_not_have_it(origin: str) -> None:
    judged = ORIGINS.classify([origin], HOST)
    assert judged is (OriginMatch.LISTED if origin in LISTED else OriginMatch.FOREIGN)


@given(st.text(alphabet="https:/lab.exmp[]10@?#*", max_size=30))
def test_what_may_be_listed_has_one_form(text: str) -> None:
    try:
        check_origin(text)
    except ValueError:
        return
    assert text == text.lower()
    assert not set("@?#*") & set(text)
    scheme, _, rest = text.partition("://")
    assert scheme in {"http", "https"}
    assert rest
    assert "/" not in rest


@pytest.mark.parametrize(
    "origin",
    [
        *LISTED,
        *OTHERS,
        "https://a",
        "http://127.0.0.1:8888",
        "https://xn--bcher-kva.example",
        "https://my_lab:65535",
    ],
)
def test_what_may_be_listed(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        *ODD,
        "https://*.example",
        "https://lab..example",
        "https://-lab.example",
        "https://bücher.example",
        "https://lab.example:0",
        "https://lab.example:",
        "https://lab.example:x",
        "https://lab.example:65536",
        "https://[::1",
        "https://[1:2]",
        "https://[::ffff:1.2.3.4%eth0]",
        "http://lab.example:80",
        "file://",
        "chrome-extension://abc",
        "data:x",
    ],
)
def test_what_no_browser_sends_cannot_be_listed(origin: str) -> None:
    with pytest.raises(ValueError, match=r"expected an origin|browsers leave"):
        check_origin(origin)
    with pytest.raises(ValueError, match=r"expected an origin|browsers leave"):
        Origins([origin])
