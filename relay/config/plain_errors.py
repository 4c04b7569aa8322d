"""Turns msgspec's validation errors into sentences for people who write YAML."""

from __future__ import annotations

import difflib
import enum
import re
from typing import Annotated, Any, Final, Literal, get_args, get_origin

_NAMES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "date": "a date",
    "datetime": "a time",
}
_BOUNDS: Final = {">=": "at least", "<=": "at most", ">": "over", "<": "below"}

_EXPECTED: Final = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`)?(.*)", re.DOTALL)
_LENGTH: Final = re.compile(r" of length (>=|<=) (\d+)")
_BOUND: Final = re.compile(r" (>=|<=|>|<) ([-0-9.]+)")
_PATTERN: Final = re.compile(r" matching regex '(?:\\+A)?(.*?)(?:\\+Z)?'")
_CHOICE: Final = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)


def plain_error(text: str, kind: Any) -> str:  # noqa: ANN401 - a type, as annotations have them
    """Return the message ``text`` of msgspec, about a value of type ``kind``, in plain words."""
    if choice := _CHOICE.fullmatch(text):
        return _not_a_choice(choice[1], _choices(kind))
    expected = _EXPECTED.fullmatch(text)
    if expected is None:
        return text
    name = _name(expected[1])
    if expected[2]:
        return f"expected {name}, got {_name(expected[2])}"
    return f"expected {name}{_limit(expected[3])}"


def _name(types: str) -> str:
    return " or ".join(_NAMES.get(each, each) for each in types.split(" | "))


def _limit(text: str) -> str:
    if length := _LENGTH.fullmatch(text):
        unit = "character" if length[2] == "1" else "characters"
        return f" of {_BOUNDS[length[1]]} {length[2]} {unit}"
    if bound := _BOUND.fullmatch(text):
        return f", {_BOUNDS[bound[1]]} {bound[2].removesuffix('.0')}"
    if pattern := _PATTERN.fullmatch(text):
        return f" that matches {pattern[1]}"
    return text


def _choices(kind: Any) -> list[str]:  # noqa: ANN401 - as above
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(each.value) for each in kind]
    return []


def _not_a_choice(value: str, choices: list[str]) -> str:
    lowered = {each.lower(): each for each in choices}
    close = difflib.get_close_matches(value.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[close[0]]}?" if close else ""
    return f"{value!r} is not one of {', '.join(choices)}{hint}"
