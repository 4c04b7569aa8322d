from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from relay import log

TOKEN = "relay_" + "Ab-_" * 10 + "xyz"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    log.configure("info", "json", component="test", stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = before


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def one(out: io.StringIO) -> dict[str, Any]:
    (line,) = lines(out)
    return line


def test_a_line_says_when_what_where_and_how_bad(out: io.StringIO) -> None:
    log.get_logger(kernel="k1").warning("agent gone", cluster="alpha", tries=3, share=0.5)
    line = one(out)
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("pid") > 0
    assert line == {
        "level": "warning",
        "component": "test",
        "event": "agent gone",
        "kernel": "k1",
        "cluster": "alpha",
        "tries": 3,
        "share": 0.5,
    }


def test_levels_below_the_configured_one_are_not_written(out: io.StringIO) -> None:
    log.get_logger().debug("no")
    logging.getLogger("some.library").debug("no")
    assert out.getvalue() == ""
    log.configure("debug", "json", component="test", stream=out)
    log.get_logger().debug("yes")
    logging.getLogger("some.library").debug("yes")
    assert [line["level"] for line in lines(out)] == ["debug", "debug"]


def test_a_logger_made_before_configuring_follows_it() -> None:
    stream = io.StringIO()
    logger = log.get_logger()
    log.configure("error", "json", component="late", stream=stream)
    logger.info("no")
    logger.error("yes")
    assert one(stream)["component"] == "late"
    structlog.reset_defaults()


async def test_context_reaches_every_line_of_a_task_and_of_no_other(out: io.StringIO) -> None:
    async def request(number: str) -> None:
        with log.context(request_id=number, kernel="k"):
            await asyncio.sleep(0)
            log.get_logger().info(number)
            logging.getLogger("library").info(number)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(request("1"), name="one")
        tasks.create_task(request("2"), name="two")
    log.get_logger().info("outside")
    written = lines(out)
    assert [line.get("request_id") for line in written] == ["1", "1", "2", "2", None]
    assert all(line["event"] == line.get("request_id", "outside") for line in written)
    assert "kernel" not in written[-1]


def test_lines_of_libraries_are_treated_the_same(out: io.StringIO) -> None:
    logging.getLogger("aiohttp.server").error("Error in %s", f"GET /?token={TOKEN}\n")
    line = one(out)
    assert (line["logger"], line["level"], line["component"]) == ("aiohttp.server", "error", "test")
    assert line["event"] == "Error in GET /?token=***\\n"


def test_no_text_is_longer_than_its_bound(out: io.StringIO) -> None:
    at_limit = "x" * log.FIELD_CHARACTERS
    log.get_logger().info("y" * 10**6, at=at_limit, over=at_limit + "x", raw=b"z" * 10**6)
    line = one(out)
    assert line["at"] == at_limit
    assert line["over"] == "x" * (log.FIELD_CHARACTERS - 1) + "…"
    assert len(line["event"]) == len(line["raw"]) == log.FIELD_CHARACTERS


def test_no_line_grows_with_what_is_nested_in_it(out: io.StringIO) -> None:
    log.get_logger().info(
        "nested",
        many=list(range(10**5)),
        mapping={str(number): "x" * 999 for number in range(10**4)},
        deep={"a": {"b": {"c": ["x" * 10**6]}}},
        number=10**10**4,
        **{"n" * 1000: 1},
    )
    assert len(out.getvalue()) < 8192
    line = one(out)
    assert line["many"] == list(range(20))
    assert isinstance(line["deep"]["a"]["b"], str)


def test_what_does_not_print_is_escaped(out: io.StringIO) -> None:
    log.get_logger().info('a\nb\x1b[31m\u202e\0\ud800é"', raw=b"\xff\r\n", **{"n\nm": 1})
    (text,) = out.getvalue().splitlines()
    line = json.loads(text)
    assert line["event"] == 'a\\nb\\x1b[31m\\u202e\\x00\\ud800é"'
    assert line["raw"] == "\\xff\\r\\n"
    assert line["n\\nm"] == 1


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"/alpha/api?token={TOKEN}&x=1", "/alpha/api?token=***&x=1"),
        ("/alpha/api?x=1&token=s3cret", "/alpha/api?x=1&token=***"),
        ("?TOKEN=s3cret#f", "?TOKEN=***#f"),
        ("?access_token=s3cret", "?access_token=***"),
        ("next=%2Fa%3Ftoken%3Ds3cret", "next=%2Fa%3Ftoken%3D***"),
        ("Authorization: token s3cret", "Authorization: token ***"),
        ("authorization: Bearer s3cret, x", "authorization: Bearer ***, x"),
        ("AUTHORIZATION: s3cret", "AUTHORIZATION: ***"),
        ("{'Authorization': 'token s3cret', 'a': 1}", "{'Authorization': 'token ***', 'a': 1}"),
        ('{"authorization":"Basic czNjcmV0"}', '{"authorization":"Basic ***"}'),
        ("(b'Authorization', b'Bearer s3cret')", "(b'Authorization', b'Bearer ***')"),
        ("Bearer s3cret", "Bearer ***"),
        (f"got {TOKEN} there", "got relay_*** there"),
        (f"token {TOKEN}", "token ***"),
        (f"ticket {JWT}.", "ticket eyJ***."),
        ("GET /t/abcdefgh2345/alpha/api HTTP/1.1", "GET /t/***/alpha/api HTTP/1.1"),
        ("https://r:8443/t/abc?x", "https://r:8443/t/***?x"),
        ("v1.token.websocket.jupyter.org.s3cret, b", "v1.token.websocket.jupyter.org.***, b"),
        ("v1.token.websocket.jupyter.org, b", "v1.token.websocket.jupyter.org, b"),
        ("the token has expired", "the token has expired"),
        ("relay_edge is up", "relay_edge is up"),
    ],
)
def test_credentials_are_masked_in_any_text(out: io.StringIO, text: str, masked: str) -> None:
    assert log.redact(text) == masked
    log.get_logger().info(text, field=text, items=[text], mapping={"a": text}, raw=text.encode())
    line = one(out)
    written = [line["event"], line["field"], *line["items"], line["mapping"]["a"], line["raw"]]
    assert written == [masked] * 5


@pytest.mark.parametrize(
    "name", ["authorization", "Authorization", "token", "access_token", "password", "Set-Cookie"]
)
def test_what_is_called_a_secret_is_masked_whatever_it_holds(out: io.StringIO, name: str) -> None:
    log.get_logger().info("x", **{name: "s3cret"}, headers={name: ["s3cret"]}, more={name: b"s3"})
    assert "s3" not in out.getvalue()
    assert one(out)[name] == "***"


def test_a_token_that_the_cut_goes_through_does_not_leak_its_head(out: io.StringIO) -> None:
    for offset in range(300):
        log.get_logger().info("x" * offset + " " + TOKEN)
    assert TOKEN[6:14] not in out.getvalue()


def test_a_traceback_keeps_its_lines_and_its_end_but_no_secret(out: io.StringIO) -> None:
    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ValueError(f"token={TOKEN}\nforged line " + f"{'x' * 99}\n" * 999)

    try:
        fail(3)
    except ValueError:
        log.get_logger().exception("failed", n=1)
    line = one(out)
    assert len(line["exception"]) < 3 * log.TRACE_CHARACTERS
    assert all(text.startswith("  ") for text in line["exception"].splitlines())
    try:
        fail(0)
    except ValueError as error:
        short = ValueError(str(error)[:80])
        log.get_logger().error("failed", exc_info=short)
    trace = lines(out)[1]["exception"].splitlines()
    assert trace == ["  ValueError: token=***", "  forged line " + "x" * (80 - 6 - 49 - 13)]


def test_nothing_that_is_logged_makes_logging_fail(out: io.StringIO) -> None:
    class Awkward:
        def __str__(self) -> str:
            raise RuntimeError

    log.get_logger().info(
        "x", a=Awkward(), b=float("nan"), c=2**64, d=-(2**200), e={1: {2}}, f=None
    )
    line = one(out)
    assert line["a"] == "<Awkward>"
    assert line["b"] is None
    assert line["c"] == str(2**64)
    assert line["e"] == {"1": [2]}


def test_a_stream_that_fails_does_not_end_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    for stream in (Full(), closed := io.StringIO()):
        closed.close()
        log.configure("info", "auto", component="test", stream=stream)
        log.get_logger().info("x")
        logging.getLogger("library").error("x")
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    assert capsys.readouterr() == ("", "")


def test_lines_for_people(out: io.StringIO) -> None:
    log.configure("info", "console", component="test", stream=out)
    log.get_logger().info("agent\ngone", path=f"/?token={TOKEN}")
    (text,) = out.getvalue().splitlines()
    assert "agent\\ngone" in text
    assert "path='/?token=***'" in text or "path=/?token=***" in text


def test_a_terminal_gets_lines_for_people_and_all_else_json(out: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        log.configure("info", "auto", component="test", stream=stream)
        log.get_logger().info("hello")
        assert stream.getvalue().startswith("{") is not stream.isatty()


def test_lines_go_to_stderr_by_default(
    out: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(component="test")
    assert sys.stderr is not None
    log.get_logger().info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "hello"
