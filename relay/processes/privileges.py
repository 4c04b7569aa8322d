"""Gives up privileges of the process for good: root's powers, and gaining new ones."""

from __future__ import annotations

import ctypes
import os
import pwd
from typing import Final

from relay.processes.errors import StartError

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PRIVATE_UMASK: Final = 0o077


def become(name: str) -> None:
    """Switch to this OS user and its groups; there is no way back.

    Until the process executes another program only root can read its memory or attach to it, not
    even the user itself (``PR_SET_DUMPABLE``). Raises `StartError` where there is no such user.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise StartError(f"user: there is no OS user {name}") from error
    try:
        os.initgroups(name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except PermissionError as error:
        raise StartError(
            f"cannot switch to the OS user {name}: start the program as root"
        ) from error
    os.umask(_PRIVATE_UMASK)


def hide_from_user() -> None:
    """Keep processes of the same OS user from attaching to this one or reading its memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def refuse_new_privileges() -> None:
    """Keep programs that this process runs from gaining privileges (``prctl(2)``)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
