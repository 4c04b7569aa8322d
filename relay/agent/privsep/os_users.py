"""The OS users of principals' kernels, by the configuration and the user database.

Agent and privileged helper both ask here: the helper trusts no uid that an agent names.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import NamedTuple, Self

import structlog

from relay.config import LaunchAs
from relay.config.values import OS_USER_NAME
from relay.errors import Forbidden
from relay.model import Principal
from relay.processes import StartError

log = structlog.get_logger(__name__)


class OsUser(NamedTuple):
    """An entry of the user database (``passwd(5)``)."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    @classmethod
    def find(cls, name: str) -> Self | None:
        """The user of exactly this name."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        # Some user databases take "Alice" for "alice".
        if entry.pw_name != name:
            return None
        return cls(name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)

    @property
    def groups(self) -> list[int]:
        """The ids of all its groups."""
        return os.getgrouplist(self.name, self.gid)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a login sets."""
        return {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell or "/bin/sh",
        }

    @property
    def working_folder(self) -> str:
        """Where a login begins."""
        return self.home if os.path.isdir(self.home) else "/"  # noqa: PTH112 - a text stays one


class OsUsers:
    """The OS users of principals.

    ``agent`` is the agent's own user, whose files no kernel may read.
    """

    def __init__(self, settings: LaunchAs, agent: OsUser) -> None:
        self.settings = settings
        self.agent = agent

    @classmethod
    def of_config(cls, settings: LaunchAs, agent: str) -> Self:
        """Look up the agent's user. Raises `StartError` where there is none, or it is root."""
        user = OsUser.find(agent)
        if user is None:
            raise StartError(f"user: there is no OS user named {agent}")
        if user.uid == 0:
            raise StartError("user: the agent must not run as root")
        return cls(settings, user)

    def of(self, principal: Principal) -> OsUser:
        """Return the OS user of a principal's kernels. Raises `Forbidden`, and logs why."""
        name = self._name(principal)
        user = None if name is None else OsUser.find(name)
        problem = self._problem(name, user)
        if user is None or problem:
            log.warning("os_user_missing", principal=str(principal), os_user=name, problem=problem)
            raise Forbidden("You have no OS user here that a kernel could run as (launch_as).")
        return user

    def uid_of(self, owner: str) -> int | None:
        """Return the uid of kernels of ``owner``, ``authenticator:subject``; None without one."""
        try:
            return self.of(Principal.parse(owner)).uid
        except (ValueError, Forbidden):
            return None

    def _name(self, principal: Principal) -> str | None:
        settings = self.settings
        mapped = settings.map.get(str(principal))
        if mapped is not None:
            return mapped
        if settings.template is None or principal.authenticator not in settings.authenticators:
            return None
        name = settings.template.replace("{subject}", principal.subject)
        return name if OS_USER_NAME.fullmatch(name) else None

    def _problem(self, name: str | None, user: OsUser | None) -> str:
        if name is None:
            return "neither in launch_as.map nor for launch_as.template"
        if user is None:
            return "no such OS user"
        refused = {_uid(each) for each in self.settings.refuse}
        if user.uid == 0 or user.uid in refused or name in self.settings.refuse:
            return "refused (launch_as.refuse)"
        if user.uid < self.settings.min_uid:
            return "the uid is too low (launch_as.min_uid)"
        if user.uid == self.agent.uid or self.agent.gid in user.groups:
            return "the agent's own user, or in its group"
        return ""


def _uid(user: int | str) -> int | None:
    """Return a user's uid: one user may have several names."""
    if isinstance(user, int):
        return user
    found = OsUser.find(user)
    return None if found is None else found.uid


def own_variables(environ: Mapping[str, str], user: OsUser) -> dict[str, str]:
    """Return this process's variables for a program that runs as another user."""
    theirs = {"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "MAIL"}
    kept = {name: value for name, value in environ.items() if name not in theirs}
    return kept | user.environment
