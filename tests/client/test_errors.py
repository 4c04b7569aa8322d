from __future__ import annotations

import re

import pytest

from relay import errors
from relay.bridge.session import REPLACED
from relay.client import errors as own
from relay.client.errors import ConnectionLost, KernelGone, Replaced, from_close, from_response
from relay.errors import AgentError, NotFound, RelayError


@pytest.mark.parametrize("kind", list(own._ERRORS))
def test_what_the_relay_says_is_what_is_raised(kind: type[RelayError]) -> None:
    error = from_response(kind.http_status, "what happened", reason=kind.reason, retry_after=2)
    assert (type(error), error.message, error.retry_after) == (kind, "what happened", 2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (429, errors.ClientError),
        (500, errors.RelayError),
        (502, errors.AgentUnavailable),
        (503, errors.AgentUnavailable),
        (504, errors.AgentUnavailable),
        (301, errors.RelayError),
    ],
)
def test_a_status_alone_says_something_too(status: int, kind: type[RelayError]) -> None:
    error = from_response(status, "")
    assert type(error) is kind
    assert str(status) in error.message


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (4401, errors.Unauthorized),
        (4403, errors.Forbidden),
        (4404, errors.NotFound),
        (1007, errors.MalformedMessage),
        (1008, errors.ClientError),
        (1009, errors.TooLarge),
    ],
)
def test_a_close_code_may_be_final(code: int, kind: type[RelayError]) -> None:
    error = from_close(code, "why")
    assert (type(error), error.message) == (kind, "why")
    assert not isinstance(error, AgentError)
    assert str(code) in from_close(code, "").message


@pytest.mark.parametrize("code", [None, 1000, 1001, 1005, 1006, 1011, 1012, 1013])
def test_after_others_one_comes_again(code: int | None) -> None:
    assert type(from_close(code, "restarting")) is ConnectionLost


def test_a_session_that_was_taken_over_is_not_taken_back() -> None:
    assert type(from_close(*REPLACED)) is Replaced
    assert not isinstance(from_close(*REPLACED), AgentError)


def test_a_kernel_that_was_there_is_gone() -> None:
    assert isinstance(own.when_connected(NotFound("no")), KernelGone)
    other = errors.Forbidden("no")
    assert own.when_connected(other) is other


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", own.__doc__ or "")
    parents = {"Replaced": "ClientError", "KernelGone": "KernelError"}
    assert {*drawn} >= {"Replaced", "ConnectionLost", "GaveUp", "KernelGone", "KernelRestarted"}
    for name, parent in parents.items():
        assert issubclass(getattr(own, name), getattr(errors, parent))
