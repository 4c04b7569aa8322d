"""Services that an edge's parent offers to its workers: their requests, answers and handlers.

A request is a struct of its own that names its service and the type of its answer:

    class ListKernels(CallRequest[list[KernelModel]], frozen=True):
        service: ClassVar[str] = "kernels"
        cluster: str

At the parent, `CallRequest.served_by` ties it to the function that answers it. A worker's
``await client.call(ListKernels("alpha"))`` is a ``list[KernelModel]``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, Union, get_args

import msgspec
from msgspec import Raw, Struct

from relay.edge.ipc.protocol import Refusal

Answer = TypeVar("Answer")


class Handler(NamedTuple):
    """How one type of request is answered at the parent."""

    request: type[Request[Any]]
    answer: Callable[[Any], Any]
    """Returns the answer, or a `Refusal`. It is called in the event loop, and must not wait."""
    release: Callable[[Any], None] | None = None
    """Takes back what was granted; None where nothing is."""


class Request(Struct, Generic[Answer], frozen=True, tag=True, array_like=True):
    """What a worker asks a service for, with ``Answer`` as the type of the answer."""

    service: ClassVar[str]
    """The service's name."""


class CallRequest(Request[Answer], Generic[Answer], frozen=True):
    """A request that is over with its answer."""

    @classmethod
    def served_by(cls, answer: Callable[[Self], Answer | Refusal]) -> Handler:
        """Return the handler that answers these requests with what ``answer`` returns."""
        return Handler(cls, answer)


class PermitRequest(Request[Answer], Generic[Answer], frozen=True):
    """A request for a permit, which lasts until its release or the end of its worker."""

    @classmethod
    def granted_by(
        cls, acquire: Callable[[Self], Answer | Refusal], release: Callable[[Self], None]
    ) -> Handler:
        """Return the handler that grants these permits.

        ``release`` is called exactly once for each request that ``acquire`` did not refuse.
        """
        return Handler(cls, acquire, release)


class Service:
    """One service at the parent: its name, and a handler for each type of its requests."""

    def __init__(self, name: str, *handlers: Handler) -> None:
        """Raises ``ValueError`` for requests that name another service."""
        self.name = name
        self._handlers = {handler.request: handler for handler in handlers}
        for request in self._handlers:
            if request.service != name:
                raise ValueError(f"{request.__name__} is of {request.service}, not of {name}")
        union: Any = Union[tuple(self._handlers)]  # noqa: UP007 - `|` has no form for a tuple
        self._decoder: msgspec.msgpack.Decoder[Request[Any]] = msgspec.msgpack.Decoder(union)

    def read(self, payload: Raw) -> tuple[Request[Any], Handler]:
        """Return the request in ``payload`` and its handler. Raises `BAD_MESSAGE`."""
        request = self._decoder.decode(payload)
        return request, self._handlers[type(request)]


@functools.cache
def answers_of(request: type[Request[Answer]]) -> msgspec.msgpack.Decoder[Answer]:
    """Return the decoder of the answers to one type of request."""
    for base in request.__orig_bases__:  # type: ignore[attr-defined]  # of every generic class
        for answer in get_args(base):
            if not isinstance(answer, TypeVar):
                return msgspec.msgpack.Decoder(answer)
    raise TypeError(f"{request.__name__} does not say what its answer is")
