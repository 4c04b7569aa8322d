"""Executes a notebook on a kernel of a Jupyter Server: the program behind `tests.system.notebook`.

    python -m tests.system.person http://127.0.0.1:8888 <notebook.ipynb >executed.ipynb

The server's token comes in ``$PERSON_TOKEN``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from typing import Any, Final

import nbformat
import websocket
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

_CELL_TIMEOUT: Final = 30
"""Seconds."""
_VIEW: Final = "application/vnd.jupyter.widget-view+json"


class Manager(GatewayKernelManager):
    """Jupyter Server's own client of a gateway; the "gateway" is another Jupyter Server."""

    async def _async_is_alive(self) -> bool:
        # The kernel client of jupyter_client 8.10 asks its manager by this name, which looks at
        # a local process; the gateway's manager knows the other name only.
        return bool(await self.is_alive())  # type: ignore[no-untyped-call]


class Person(NotebookClient):
    """nbclient, and what a person does besides: answers questions, moves widgets."""

    async def async_start_new_kernel_client(self) -> Any:
        client = await super().async_start_new_kernel_client()
        client.allow_stdin = True
        return client

    async def async_execute_cell(
        self,
        cell: NotebookNode,
        cell_index: int,
        execution_count: int | None = None,
        store_history: bool = True,  # noqa: FBT002 - nbclient's signature
    ) -> NotebookNode:
        async with asyncio.TaskGroup() as tasks:
            answers = tasks.create_task(self._answer(cell))
            cell = await super().async_execute_cell(
                cell, cell_index, execution_count, store_history
            )
            answers.cancel()
        if "move" in cell.metadata:
            await self._move(cell, cell_index)
        return cell

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        if msg["msg_type"] == "comm_open":
            state = msg["content"]["data"]["state"]
            cell.metadata.setdefault("opened", []).append(state["_model_name"])
        return super().process_message(msg, cell, cell_index)

    async def _answer(self, cell: NotebookNode) -> None:
        assert self.kc is not None
        for answer in cell.metadata.get("answers", ()):
            request = await self.kc.stdin_channel.get_msg(timeout=None)
            cell.metadata.setdefault("prompts", []).append(request["content"]["prompt"])
            reply = self.kc.session.msg("input_reply", {"value": answer}, parent=request)
            # The gateway's client leaves the channel out, and then it is the shell's.
            self.kc.stdin_channel.send({**reply, "channel": "stdin"})

    async def _move(self, cell: NotebookNode, cell_index: int) -> None:
        """Send the new state to the widget that the cell shows, and see what comes of it."""
        assert self.kc is not None
        (view,) = (each.data[_VIEW] for each in cell.outputs if _VIEW in each.get("data", {}))
        update = {"method": "update", "state": cell.metadata["move"], "buffer_paths": []}
        content = {"comm_id": view["model_id"], "data": update}
        request = self.kc.session.msg("comm_msg", content)
        self.kc.shell_channel.send(request)
        moved = cell.metadata.setdefault("moved", [])
        while True:
            message = await self.kc.iopub_channel.get_msg(timeout=None)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            kind = message["msg_type"]
            if kind.startswith("comm"):
                self.handle_comm_msg(moved, message, cell_index)
            elif kind != "status":
                moved.append(output_from_msg(message))
            elif message["content"]["execution_state"] == "idle":
                return


def use_gateway(url: str, ws_url: str, token: str) -> None:
    """Have this process's gateway client ask this server."""
    gateway = GatewayClient.instance()
    gateway.url, gateway.ws_url = url, ws_url
    gateway.auth_token = token


def send_credentials(token: str) -> None:
    """Have it authenticate its WebSockets too, which it opens without any credentials."""
    websocket.create_connection = functools.partial(
        websocket.create_connection, header={"Authorization": f"token {token}"}
    )


def main(url: str) -> None:
    """Execute the notebook on standard input."""
    token = os.environ.pop("PERSON_TOKEN")
    use_gateway(url, url.replace("http", "ws", 1), token)
    send_credentials(token)
    notebook = nbformat.reads(sys.stdin.read(), as_version=4)
    person = Person(
        notebook,
        kernel_manager_class=Manager,
        allow_errors=True,
        coalesce_streams=True,
        timeout=_CELL_TIMEOUT,
    )
    # Not nbformat's own form, which cuts texts into lines.
    json.dump(person.execute(), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
