from __future__ import annotations

import string
from urllib.parse import quote, unquote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import BadRequest, NotFound
from relay.routing.paths import MAX_TARGET, parse_target


@pytest.mark.parametrize(
    ("raw", "segments", "path", "query"),
    [
        ("/", ("",), "/", ""),
        ("/?a", ("",), "/", "a"),
        ("/alpha", ("alpha",), "/alpha", ""),
        ("/alpha/", ("alpha", ""), "/alpha/", ""),
        ("/alpha/api", ("alpha", "api"), "/alpha/api", ""),
        ("/alpha/api/kernels?1722222222222", ("alpha", "api", "kernels"), "/alpha/api/kernels",
         "1722222222222"),
        ("/alpha/api/kernelspecs?user=U/python3", ("alpha", "api", "kernelspecs"),
         "/alpha/api/kernelspecs", "user=U/python3"),
        ("/alpha/tree?", ("alpha", "tree"), "/alpha/tree", ""),
        ("/a?b?c=//..;%2f%2e", ("a",), "/a", "b?c=//..;%2f%2e"),
        ("/a/b%20c/d", ("a", "b c", "d"), "/a/b%20c/d", ""),
        ("/%C3%A9%c3%a9", ("\u00e9\u00e9",), "/%C3%A9%c3%a9", ""),
        ("/a/logo-64x64.png", ("a", "logo-64x64.png"), "/a/logo-64x64.png", ""),
        ("/a/.hidden/...x/..y/z..", ("a", ".hidden", "...x", "..y", "z.."),
         "/a/.hidden/...x/..y/z..", ""),
        ("/a+b/c~d_e-f@g:h,(i)!$&'*=j", ("a+b", "c~d_e-f@g:h,(i)!$&'*=j"),
         "/a+b/c~d_e-f@g:h,(i)!$&'*=j", ""),
        ("/a%2Bb%40", ("a+b@",), "/a%2Bb%40", ""),
    ],
)  # fmt: skip
def test_good_targets(raw: str, segments: tuple[str, ...], path: str, query: str) -> None:
    assert parse_target(raw) == (segments, path, query)


def test_the_longest_target() -> None:
    assert parse_target("/" + "x" * (MAX_TARGET - 1)).segments == ("x" * (MAX_TARGET - 1),)


@pytest.mark.parametrize("raw", ["/" + "x" * MAX_TARGET, "/?" + "x" * (MAX_TARGET - 1)])
def test_too_long(raw: str) -> None:
    with pytest.raises(BadRequest):
        parse_target(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "*",
        "alpha/api",
        "http://edge/alpha/api",
        "HTTP://edge/",
        "https://edge:8443/alpha",
        "//edge/alpha",
        "edge:443",
        "?a=b",
        " /alpha",
        "\t/alpha",
        ".",
        "..",
        "%2falpha",
        "\\alpha",
    ],
)
def test_not_origin_form(raw: str) -> None:
    with pytest.raises(BadRequest):
        parse_target(raw)


@pytest.mark.parametrize(
    "path",
    [
        # dot segments, however they are written
        "/.", "/..", "/./", "/../", "/alpha/.", "/alpha/..", "/alpha/./api", "/alpha/../beta/api",
        "/alpha/api/../../beta", "/%2e", "/%2E%2e/", "/.%2e/x", "/%2e./x", "/alpha/%2e%2e/beta",
        "/alpha/%2E/api", "/alpha/%252e%252e/beta", "/alpha/..%2fbeta", "/alpha/..%5cbeta",
        "/alpha/..;/beta", "/alpha/..%3b/beta", "/alpha/..%00/beta", "/alpha/..%20/../beta",
        "/alpha/%u002e%u002e/", "/alpha/%c0%ae%c0%ae/", "/alpha/%e0%80%ae/", "/alpha/\uff0e\uff0e/",
        # slashes
        "//", "//alpha", "/alpha//api", "/alpha/api//", "/alpha///api", "/alpha%2fapi",
        "/alpha%2Fapi", "/alpha/%2f", "/alpha%252fapi", "/alpha%25252fapi", "/alpha/%c0%af",
        "/alpha\\api", "/alpha/\\", "/alpha%5capi", "/alpha%5Capi", "/\\evil.example",
        # parameters, fragments, second queries
        "/alpha;x=1/api", "/alpha/;", "/alpha%3bx/api", "/alpha%3Bx", "/alpha#/api", "/#",
        "/alpha%23/api", "/alpha%3f/api", "/alpha%3F",
        # controls, spaces and the rest of what is not visible ASCII
        "/alpha%00", "/%00alpha", "/alpha%0a", "/alpha%0d%0aX-Evil:%201", "/alpha%1F", "/alpha%7f",
        "/alpha\0", "/alpha\n", "/alpha\r\nHost: x", "/alpha\t", "/al pha", "/alpha\x7f",
        "/alpha\x80", "/\u00e9", "/\ud800", "/alpha\u2028", "/%c2%85", "/%e2%80%ae", "/%e2%80%8b",
        "/%ef%bb%bf", "/%c2%a0",
        # escapes that are none, or not UTF-8
        "/%", "/%2", "/alpha%", "/alpha%zz", "/alpha%-1", "/alpha%+1", "/alpha% 1", "/%%32%65",
        "/alpha%2", "/alpha%g0", "/%0x41", "/%\uff12\uff15", "/%ff", "/%c3", "/%c3%28",
        "/%ed%a0%80", "/%f8%88%80%80%80", "/%c3/%a9",
        # a second spelling of what needs no escape
        "/%61lpha/api", "/alpha/%61pi", "/alpha/api/%6bernels", "/alph%41", "/%7Ealpha", "/%5f",
        "/%2D", "/a%2eb", "/logo%2Epng",
        "/alpha/%30", "/alpha/%39", "/%5a", "/%7a", "/%4F", "/%6f", "/%50", "/%70",
        # not pchar
        "/<script>", '/"', "/^", "/`", "/{x}", "/a|b", "/[x]",
    ],
)  # fmt: skip
def test_hostile_paths(path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_target(path)
    assert path not in caught.value.message or len(path) < 3


@pytest.mark.parametrize(
    "query",
    ["#", "a#b", "\\", "a\\b", "%", "%2", "%zz", "%u0041", "%00", "a=%0a", "%0D%0A", "%7f", "\0",
     "\n", " ", "\u00e9", "\x80", "\ud800", "%ff", "%c3", "%c3&%a9", "%ed%a0%80", "%1b"],
)  # fmt: skip
def test_hostile_queries(query: str) -> None:
    with pytest.raises(BadRequest):
        parse_target(f"/alpha/api?{query}")


@given(st.text(max_size=40))
def test_anything_after_a_slash_is_refused_or_means_one_thing(text: str) -> None:
    raw = "/" + text
    try:
        target = parse_target(raw)
    except BadRequest:
        return
    assert raw in {f"{target.path}?{target.query}", target.path}
    assert target.path == raw.split("?")[0]
    assert unquote(target.path) == "/" + "/".join(target.segments)
    assert unquote(unquote(target.path)) == unquote(target.path)
    for segment in target.segments:
        assert segment not in {".", ".."}
        assert not set(segment) & set("/\\;?#%\0")


@given(st.lists(st.text(string.printable, min_size=1, max_size=12), min_size=1, max_size=4))
def test_well_escaped_segments_come_back_or_are_refused(segments: list[str]) -> None:
    raw = "/" + "/".join(quote(segment, safe="") for segment in segments)
    try:
        assert parse_target(raw).segments == tuple(segments)
    except BadRequest:
        assert any(
            segment in {".", ".."} or set(segment) & set("/\\;?#%\t\n\r\x0b\x0c")
            for segment in segments
        )


@pytest.mark.parametrize(
    ("raw", "segments", "path"),
    [
        ("/services/relay/alpha/api?x=%2F", ("alpha", "api"), "/alpha/api"),
        ("/services/relay/", ("",), "/"),
        ("/services/relay", ("",), "/"),
        ("/services/relay?x", ("",), "/"),
        ("/services/relay/alpha%20x/", ("alpha x", ""), "/alpha%20x/"),
        ("/services/relay/%C3%A9/", ("\u00e9", ""), "/%C3%A9/"),
        ("/services/relay/services/relay/x", ("services", "relay", "x"), "/services/relay/x"),
    ],
)
def test_what_is_left_below_a_base(raw: str, segments: tuple[str, ...], path: str) -> None:
    target = parse_target(raw)
    assert target.below("services", "relay") == (segments, path, target.query)
    assert target.below() == target


@pytest.mark.parametrize(
    "raw",
    [
        "/",
        "/services",
        "/services/",
        "/services/relayx",
        "/services/relayx/alpha",
        "/services/rela/alpha",
        "/Services/relay/alpha",
        "/x/services/relay/alpha",
        "/relay/services/alpha",
        "/?/services/relay/alpha",
    ],
)
def test_what_is_not_below_a_base(raw: str) -> None:
    with pytest.raises(NotFound):
        parse_target(raw).below("services", "relay")


def test_values_are_decoded_and_in_order() -> None:
    target = parse_target("/a?x=1&y=b+c%20d&x=%C3%A9&x&x=&z=1=2")
    assert target.values("x") == ("1", "\u00e9", "", "")
    assert target.values("y") == ("b c d",)
    assert target.values("z") == ("1=2",)
    assert target.values("X") == ()


def test_an_escaped_name_is_that_name() -> None:
    assert parse_target("/a?%74oken=T").values("token") == ("T",)


@pytest.mark.parametrize(
    "query",
    [
        "token=SECRET",
        "token=SECRET&token=SECRET",
        "%74oken=SECRET",
        "tok%65n=SECRET",
        "&token=SECRET",
        "token=SECRET&",
        "token=a=SECRET",
        "tok%45n=x&token=SECRET",
        "%74%6F%6b%65%6e=SECRET",
    ],
)
def test_every_spelling_of_the_token_is_read(query: str) -> None:
    target = parse_target(f"/a?a=1&{query}&b=2")
    assert any("SECRET" in value for value in target.values("token"))


@given(st.lists(st.tuples(st.sampled_from(["token", "a", "b"]), st.text("xyz&=%+ ;", max_size=5))))
def test_each_parameter_is_read_as_a_whole(pairs: list[tuple[str, str]]) -> None:
    target = parse_target("/?" + urlencode(pairs))
    assert target.values("token") == tuple(value for name, value in pairs if name == "token")
