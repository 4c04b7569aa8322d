from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from relay import errors
from relay.errors import AgentUnavailable, ClientError, RelayError


def tree(root: type[RelayError] = RelayError) -> Iterator[type[RelayError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = re.findall(
        r"^(?:[│├└─ ]*)([A-Z]\w+)(.*)$", (errors.__doc__ or "").split("\n\n")[1], re.MULTILINE
    )
    assert [name for name, _ in drawn] == [kind.__name__ for kind in tree()]
    for name, told in drawn:
        kind = getattr(errors, name)
        for status in re.findall(r"\b[345]\d\d\b", told):
            assert kind.http_status == int(status), name
        for code in re.findall(r"close code (\d+)", told):
            assert kind.close_code == int(code), name


@pytest.mark.parametrize("kind", list(tree()))
def test_every_error_can_be_shown(kind: type[RelayError]) -> None:
    error = kind("what happened")
    assert error.message == str(error) == "what happened"
    assert error.retry_after is None
    assert error.reason
    # A client is to blame by 4xx, and by nothing else.
    assert (400 <= error.http_status < 500) is isinstance(error, ClientError)
    # What a server may send in a close frame (RFC 6455 §7.4).
    assert 1007 <= error.close_code <= 1014 or 4000 <= error.close_code < 5000


def test_an_error_may_say_when_to_try_again() -> None:
    assert AgentUnavailable("away", retry_after=2).retry_after == 2
