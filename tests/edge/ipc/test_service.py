from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

import msgspec
import pytest
from msgspec import Raw

from relay.edge.ipc.protocol import BAD_MESSAGE
from relay.edge.ipc.service import CallRequest, Service, answers_of
from tests.edge.ipc.demo import Break, Desk, Elsewhere, Keep, ListModels, Model

T = TypeVar("T")


def raw(request: object) -> Raw:
    return Raw(msgspec.msgpack.encode(request))


def nothing(_: Keep) -> None:
    """Answer."""


def test_a_request_finds_its_handler() -> None:
    taken: list[Desk] = []

    def take(desk: Desk) -> str:
        taken.append(desk)
        return "desk 1"

    service = Service("demo", Keep.served_by(nothing), Desk.granted_by(take, taken.remove))
    request, handler = service.read(raw(Desk(3)))
    assert (request, handler.answer(request), taken) == (Desk(3), "desk 1", [Desk(3)])
    assert handler.release is not None
    handler.release(request)
    assert taken == []
    request, handler = service.read(raw(Keep(b"x")))
    assert (request, handler.answer, handler.release) == (Keep(b"x"), nothing, None)


@pytest.mark.parametrize(
    "payload",
    [raw(["Drop", b"x"]), raw(Break()), raw(["Keep"]), raw(["Keep", 1]), raw(None), Raw(b"\xc1")],
)
def test_what_is_no_request_of_the_service_is_refused(payload: Raw) -> None:
    with pytest.raises(BAD_MESSAGE):
        Service("demo", Keep.served_by(nothing)).read(payload)


def test_a_service_answers_its_own_requests_only() -> None:
    with pytest.raises(ValueError, match="Elsewhere is of elsewhere, not of demo"):
        Service("demo", Keep.served_by(nothing), Elsewhere.served_by(lambda _: 1))


def test_answers_are_of_the_requests_type() -> None:
    answer = msgspec.msgpack.encode([Model(1, "a")])
    assert answers_of(ListModels).decode(answer) == [Model(1, "a")]
    for wrong in ("a", [1], [{"id": "a", "text": ""}]):
        with pytest.raises(BAD_MESSAGE):
            answers_of(ListModels).decode(msgspec.msgpack.encode(wrong))
    assert answers_of(Keep).decode(msgspec.msgpack.encode(None)) is None


def test_a_request_that_inherits_its_answer() -> None:
    class Several(ListModels, frozen=True):
        """As the one that it is made of."""

    assert answers_of(Several).decode(msgspec.msgpack.encode([])) == []


def test_a_request_without_an_answers_type_is_a_mistake() -> None:
    class Anything(CallRequest[T], Generic[T], frozen=True):
        service: ClassVar[str] = "demo"

    with pytest.raises(TypeError, match="Anything does not say"):
        answers_of(Anything)
