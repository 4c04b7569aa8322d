from __future__ import annotations

from typing import Any

import pytest

from relay.agent.api.parameters import choose
from relay.errors import BadRequest

PROPERTIES = {
    "level": {"type": "string", "enum": ["low", "high"], "default": "low"},
    "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
    "fast": {"type": "boolean", "default": False},
    "note": {"type": "string", "default": "none"},
}


def spec(properties: Any = PROPERTIES, **schema: Any) -> dict[str, Any]:
    return {"spec": {"metadata": {"parameters": {"properties": properties, **schema}}}}


def chosen(asked: Any, kernelspec: Any = None, *, free: bool = False) -> dict[str, str]:
    return choose(spec() if kernelspec is None else kernelspec, asked, allow_free=free)


def test_defaults_stand_in_as_text() -> None:
    assert chosen(None) == {"level": "low", "count": "3", "fast": "false", "note": "none"}
    assert chosen({}) == chosen(None)


def test_what_is_asked_for_goes_before_defaults() -> None:
    assert chosen({"level": "high", "count": 9, "fast": True}) == {
        "level": "high",
        "count": "9",
        "fast": "true",
        "note": "none",
    }


@pytest.mark.parametrize("kernelspec", [{"spec": {}}, {"spec": {"metadata": None}}, spec({})])
def test_most_kernelspecs_have_none(kernelspec: dict[str, Any]) -> None:
    assert chosen(None, kernelspec) == {}
    with pytest.raises(BadRequest, match="has none named 'level'"):
        chosen({"level": "low"}, kernelspec)


@pytest.mark.parametrize(
    "asked",
    [
        {"level": "medium"},
        {"level": ["low"]},
        {"level": None},
        {"count": 0},
        {"count": 10},
        {"count": "3"},
        {"count": 1.5},
        {"count": "1 --evil"},
        {"fast": "true"},
        {"fast": 1},
        {"other": 1},
    ],
)
def test_what_the_schema_does_not_allow_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"parameters: .*{next(iter(asked))}"):
        chosen(asked)


@pytest.mark.parametrize("value", ["x", "--evil", "$(touch x)", ""])
def test_free_text_takes_a_cluster_that_allows_it(value: str) -> None:
    with pytest.raises(BadRequest, match=r"kernels\.allow_free_parameters"):
        chosen({"note": value})
    assert chosen({"note": value}, free=True)["note"] == value


def test_a_parameter_without_a_default_must_be_given() -> None:
    kernelspec = spec({"size": {"type": "integer"}})
    with pytest.raises(BadRequest, match="size has no default"):
        chosen(None, kernelspec)
    assert chosen({"size": 2}, kernelspec) == {"size": "2"}


@pytest.mark.parametrize(
    "schema", [True, {"type": ["integer", "string"], "default": 1}, {"default": 1}]
)
def test_what_could_be_anything_is_free(schema: Any) -> None:
    with pytest.raises(BadRequest, match=r"kernels\.allow_free_parameters"):
        chosen({"a": "--evil"}, spec({"a": schema}))


def test_one_of_several_bounded_types_is_bounded() -> None:
    kernelspec = spec({"a": {"type": ["integer", "boolean"], "default": 1}})
    assert chosen({"a": 5}, kernelspec) == {"a": "5"}


def test_a_broken_schema_is_the_kernelspecs_fault_and_said_so() -> None:
    with pytest.raises(BadRequest, match="schema is not valid"):
        chosen(None, spec({"a": {"type": "nonsense", "default": 1}}))
