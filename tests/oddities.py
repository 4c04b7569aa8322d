"""What may be found where a plain file should be, in a folder that another user can write to."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

ODDITIES: Final = ["link", "dangling", "pipe", "folder", "second name", "socket"]


def put(path: Path, what: str, content: bytes) -> None:
    """Put one of the `ODDITIES` at ``path``, by which ``content`` might be read."""
    path.unlink(missing_ok=True)
    other = path.with_name("other")
    other.write_bytes(content)
    match what:
        case "link":
            path.symlink_to(other)
        case "dangling":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "second name":
            path.hardlink_to(other)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
