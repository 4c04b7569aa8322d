"""What a process may do, given up for good: root's powers, more of them by way of a program."""

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
    """Go on as this OS user, with its groups; there is no way back.

    Until it runs another program nobody but root can look into the process or its memory, not
    even that user (``PR_SET_DUMPABLE``). Raises `StartError` where there is no such user.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise StartError(f"user: there is no OS user named {name}") from error
    try:
        os.initgroups(name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except PermissionError as error:
        raise StartError(f"cannot become the OS user {name}: start it as root") from error
    os.umask(_PRIVATE_UMASK)


def hide_from_user() -> None:
    """Let no process of the same OS user look into this one, or its memory (``prctl(2)``)."""
    _prctl(_PR_SET_DUMPABLE, 0)


def refuse_new_privileges() -> None:
    """Let no program that is run from here gain what this process has not (``prctl(2)``)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
