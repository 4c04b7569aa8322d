"""The count that the demonstration and the tests rely on notices what it is there for."""

from __future__ import annotations

import pytest

from tests.system.channels import Count, count_lines


@pytest.mark.parametrize(
    ("came", "count"),
    [
        ("1 2 3 4", Count(lost=0, repeated=0, out_of_order=0, strange=0)),
        ("1 3 4", Count(lost=1, repeated=0, out_of_order=0, strange=0)),
        ("1 2", Count(lost=2, repeated=0, out_of_order=0, strange=0)),
        ("", Count(lost=4, repeated=0, out_of_order=0, strange=0)),
        ("1 2 2 3 4", Count(lost=0, repeated=1, out_of_order=0, strange=0)),
        ("1 2 3 2 3 4", Count(lost=0, repeated=2, out_of_order=0, strange=0)),
        ("1 3 2 4", Count(lost=0, repeated=0, out_of_order=1, strange=0)),
        ("4 3 2 1", Count(lost=0, repeated=0, out_of_order=3, strange=0)),
        ("1 23 4", Count(lost=2, repeated=0, out_of_order=0, strange=1)),
        ("1 2 3 4 5", Count(lost=0, repeated=0, out_of_order=0, strange=1)),
    ],
)
def test_lines_are_counted(came: str, count: Count) -> None:
    assert count_lines("".join(f"{line}\n" for line in came.split()), ["1", "2", "3", "4"]) == count
