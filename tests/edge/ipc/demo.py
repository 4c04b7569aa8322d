"""A parent with services of our own making, in the process of its workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge.ipc.client import ParentClient
from relay.edge.ipc.protocol import Refusal
from relay.edge.ipc.quotas import Quotas, quotas_service
from relay.edge.ipc.server import ParentServer, socket_path
from relay.edge.ipc.service import CallRequest, PermitRequest, Service
from tests.virtualtime import settle

ME = os.getpid()


class Model(Struct, frozen=True):
    id: int
    text: str


class ListModels(CallRequest[list[Model]], frozen=True):
    service: ClassVar[str] = "demo"
    models: int
    text: str = ""


class Keep(CallRequest[None], frozen=True):
    service: ClassVar[str] = "demo"
    data: bytes


class Break(CallRequest[int], frozen=True):
    service: ClassVar[str] = "demo"


class Desk(PermitRequest[str], frozen=True):
    """One of two desks; the answer is its name, padded to a size."""

    service: ClassVar[str] = "demo"
    size: int = 0
    data: bytes = b""


class Elsewhere(CallRequest[int], frozen=True):
    """A request that no service of the parent's answers."""

    service: ClassVar[str] = "elsewhere"


class Parent:
    """What the parent keeps, behind two services: ``demo`` and ``quotas``."""

    def __init__(self, shared: Path) -> None:
        self.path = socket_path(shared)
        self.quotas = Quotas(
            ConnectionSettings(total=3, per_address=2),
            QuotaSettings(user_sockets=2, user_requests=1.0, user_burst=2),
            LoginSettings(failures=1),
        )
        self.kept: list[bytes] = []
        self.refusal: Refusal | None = None
        self.desks = 0
        self.workers = {ME}
        self.gone = 0
        self.released: Callable[[], None] = lambda: None
        """Called when a desk is left."""
        self.clients: list[ParentClient] = []
        self.services = (self.demo(), quotas_service(self.quotas, lambda: 0.0))
        self.server = ParentServer(
            self.path, self.services, is_worker=lambda pid: pid in self.workers
        )

    def demo(self) -> Service:
        return Service(
            "demo",
            ListModels.served_by(lambda asked: [Model(n, asked.text) for n in range(asked.models)]),
            Keep.served_by(self.keep),
            Break.served_by(lambda _: 1 // 0),
            Desk.granted_by(self.take_desk, self.leave_desk),
        )

    def keep(self, request: Keep) -> Refusal | None:
        self.kept.append(request.data)
        return self.refusal

    def take_desk(self, request: Desk) -> str | Refusal:
        if self.desks == 2:
            return Refusal("desks", "both are taken", 7)
        self.desks += 1
        return f"desk {self.desks}".ljust(request.size)

    def leave_desk(self, _: Desk) -> None:
        self.desks -= 1
        self.released()

    async def connect(self) -> ParentClient:
        self.clients.append(await ParentClient.connect(self.path, ME, self.on_gone))
        return self.clients[-1]

    def on_gone(self) -> None:
        self.gone += 1


@contextlib.asynccontextmanager
async def listening(shared: Path) -> AsyncIterator[Parent]:
    parent = Parent(shared)
    await parent.server.listen()
    try:
        yield parent
    finally:
        for client in parent.clients:
            client.close()
        parent.server.close()
        await settle()
