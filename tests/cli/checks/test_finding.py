from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from relay.cli.checks import finding
from relay.cli.checks.finding import Finding, check, error, final_check, findings_of, warning


class One(msgspec.Struct):
    """Settings of one program."""

    port: int = 0


class Two(msgspec.Struct):
    """Settings of another program."""


@pytest.fixture(autouse=True)
def _empty_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "_CHECKS", {})
    monkeypatch.setattr(finding, "_FINAL_CHECKS", {})


def test_checks_run_in_the_order_of_their_registration() -> None:
    @check(One)
    def first(settings: One) -> Iterator[Finding]:
        yield warning("port", f"it is {settings.port}")

    @check(One)
    def second(settings: One) -> Iterator[Finding]:
        yield error("port", "it is taken")
        yield error("host", "it is unknown")

    assert findings_of(One(port=7)) == [
        Finding("warning", "port", "it is 7"),
        Finding("error", "port", "it is taken"),
        Finding("error", "host", "it is unknown"),
    ]


def test_a_check_is_for_the_kinds_that_it_names() -> None:
    @check(One, Two)
    def both(settings: msgspec.Struct) -> Iterator[Finding]:
        yield warning("", type(settings).__name__)

    @check(Two)
    def only(settings: Two) -> Iterator[Finding]:
        yield error("", "only two")

    assert [each.text for each in findings_of(One())] == ["One"]
    assert [each.text for each in findings_of(Two())] == ["Two", "only two"]


def test_a_finding_of_two_checks_is_reported_once() -> None:
    def taken(settings: One) -> Iterator[Finding]:
        yield error("port", "it is taken")

    check(One)(taken)
    check(One)(taken)
    assert findings_of(One()) == [Finding("error", "port", "it is taken")]


@pytest.mark.parametrize(("severity", "runs"), [("warning", True), ("error", False)])
def test_a_final_check_runs_only_without_an_error(
    severity: finding.Severity, *, runs: bool
) -> None:
    @final_check(One)
    def last(settings: One) -> Iterator[Finding]:
        yield error("", "it would not start")

    @check(One)
    def before(settings: One) -> Iterator[Finding]:
        yield Finding(severity, "port", "something")

    found = [each.text for each in findings_of(One())]
    assert found == (["something", "it would not start"] if runs else ["something"])


def test_a_registered_function_stays_itself() -> None:
    def function(settings: One) -> Iterator[Finding]:
        yield from ()

    assert check(One)(function) is function
    assert final_check(One)(function) is function


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 - no address is bound
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("LOCALHOST", False),
        ("", False),
    ],
)
def test_an_address_that_only_this_machine_reaches(host: str, *, loopback: bool) -> None:
    assert finding.is_loopback(host) is loopback
