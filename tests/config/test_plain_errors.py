from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from relay.config.plain_errors import plain_error


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


def said(value: object, kind: Any) -> str:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(value, kind)
    return plain_error(str(error.value), kind)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("x", int, "expected a whole number, got text"),
        (True, int, "expected a whole number, got true or false"),
        ("x", float, "expected a number, got text"),
        (1, str, "expected text, got a whole number"),
        ("x", bool, "expected true or false, got text"),
        (None, int, "expected a whole number, got null"),
        ([], int, "expected a whole number, got a list"),
        ({}, str, "expected text, got a mapping"),
        (1.5, int | str, "expected a whole number or text, got a number"),
        (0, Annotated[int, Meta(ge=1)], "expected a whole number, at least 1"),
        (9.5, Annotated[float, Meta(le=9)], "expected a number, at most 9"),
        (0, Annotated[float, Meta(gt=0)], "expected a number, over 0"),
        (9, Annotated[int, Meta(lt=9)], "expected a whole number, at most 8"),
        ("", Annotated[str, Meta(min_length=1)], "expected text of at least 1 character"),
        ("abc", Annotated[str, Meta(max_length=2)], "expected text of at most 2 characters"),
        ("B", Annotated[str, Meta(pattern=r"\A[a-z]+\Z")], "expected text that matches [a-z]+"),
    ],
)
def test_a_wrong_value_is_described_without_names_of_types(
    value: object, kind: Any, expected: str
) -> None:
    assert said(value, kind) == expected


def test_the_choices_are_named_and_the_closest_is_suggested() -> None:
    assert said("RED", Colour) == "'RED' is not one of red, green; did you mean red?"
    assert said("loud", Literal["debug", "info"]) == "'loud' is not one of debug, info"
    assert said("x", Annotated[Literal["aa", "bb"], Meta()]) == "'x' is not one of aa, bb"


def test_other_messages_are_not_changed() -> None:
    assert plain_error("Something else", int) == "Something else"
