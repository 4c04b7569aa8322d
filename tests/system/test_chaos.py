"""A short run of `make chaos`, and that its count notices what it is there for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import desk, table
from tests.chaos.arena import Arena
from tests.chaos.blows import LANES
from tests.chaos.desk import Desk
from tests.chaos.posts import Large, Speed
from tests.chaos.tally import Asked, Heard, Requirement, Tally

KILLS = 2
LINES = Speed(lines=500)
ROWS = {row.name: row for lane in LANES for row in lane}
PROMISED = Requirement()
STRICT = Requirement(once=True, arrives=True)


def heard(*messages: tuple[str, str]) -> Tally:
    """The tally of one hit on a request for two lines, of which this was heard."""
    asked = Asked("it", ["it 0", "it 1"], 0.0)
    for kind, text in messages:
        asked.hear(Heard("it", kind, text))
    tally = Tally(hits=1)
    tally.add(asked, 1)
    return tally


BUSY, IDLE = ("status", "busy"), ("status", "idle")
FIRST, SECOND = ("stream", "it 0\n"), ("stream", "it 1\n")
REPLY = "execute_reply", ""
ALL = BUSY, FIRST, SECOND, REPLY, IDLE


def test_what_is_complete_breaks_no_promise() -> None:
    assert STRICT.broken_by(heard(*ALL), 1) == []


def test_what_may_be_lost_must_be_told() -> None:
    tally = Tally(hits=1)
    asked = Asked("it", ["it 0"], 0.0)
    asked.hear(Heard("it", "stream", "1 message is lost", stderr=True))
    tally.add(asked, 1)
    assert Requirement(complete=False).broken_by(tally, 1) == []
    assert Requirement(complete=False).broken_by(heard(BUSY), 1) == ["2 untold"]


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ((BUSY, FIRST, REPLY, IDLE), ["1 lost"]),
        ((BUSY, SECOND, FIRST, REPLY, IDLE), ["1 reordered"]),
        ((*ALL[:3], ("stream", "what\n"), REPLY, IDLE), ["1 strange"]),
        ((BUSY, FIRST, SECOND, IDLE), ["1 replies missing"]),
        ((BUSY, FIRST, SECOND, REPLY), ["1 idles missing"]),
    ],
)
def test_what_is_missing_or_out_of_place_breaks_it(
    messages: tuple[tuple[str, str], ...], wrong: list[str]
) -> None:
    assert PROMISED.broken_by(heard(*messages), 1) == wrong


@pytest.mark.parametrize("again", [FIRST, REPLY, IDLE, BUSY])
def test_what_is_repeated_breaks_the_strict_one_only(again: tuple[str, str]) -> None:
    assert PROMISED.broken_by(heard(*ALL, again), 1) == []
    assert STRICT.broken_by(heard(*ALL, again), 1) == ["1 repeated"]


def test_a_request_that_never_arrived_breaks_the_strict_one_only() -> None:
    tally = Tally(hits=1)
    tally.add(Asked("it", ["it 0"], 0.0), 0)
    assert PROMISED.broken_by(tally, 1) == []
    assert STRICT.broken_by(tally, 1) == ["1 requests did not arrive"]


def test_a_request_that_is_executed_twice_or_too_few_kills_break_both() -> None:
    tally = heard(*ALL)
    tally.twice = 1
    assert PROMISED.broken_by(tally, 2) == ["1 kills of 2", "1 twice"]


class Forgetful:
    """Loses the first request, as a client does that has not noticed that its connection broke."""

    def __init__(self, desk: Desk) -> None:
        self.asked: list[str] = []
        self._desk = desk

    def ports(self) -> set[int]:
        return set()

    async def ask(self, key: str, code: str) -> None:
        self.asked.append(key)
        if len(self.asked) > 1:
            for kind, text in (BUSY, REPLY, IDLE):
                self._desk.hear(Heard(key, kind, text))

    async def close(self) -> None:
        pass


async def test_a_moment_is_asked_for_again_where_the_request_never_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "_QUIET", 0.0)
    sat = Desk("it", tmp_path / "marks")
    seat = sat.seat = Forgetful(sat)
    await Large(sat, random.Random(0), 16).begin()  # noqa: S311
    assert seat.asked == ["it-0", "it-probe-2", "it-2"]
    tally = Tally()
    sat.count(tally)
    assert (tally.asked, tally.arrived) == (2, 0)


@pytest.mark.timeout(400)
async def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - not a secret
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    dice = random.Random(seed)  # noqa: S311
    async with Arena(
        ["raw"], ["printing", "asked", "large"], dice, speeds={"printing": LINES}
    ) as arena:
        for name in ("agent", "edge and agent"):
            row = ROWS[name]
            for cell, tally in (await arena.fight(row, KILLS, lambda _: None)).items():
                print(name, *cell, *table.cells(tally), *tally.trouble)  # noqa: T201
                assert row.required.broken_by(tally, KILLS) == []
