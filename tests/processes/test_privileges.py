from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
LOOK = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), status["NoNewPrivs"].strip(),
    status["CapPrm"].strip(), os.stat("/proc/self/environ").st_uid]))
"""


def look(code: str) -> Any:
    command = [sys.executable, "-c", f"from relay.processes import *\n{code}\n{LOOK}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@as_root
def test_who_became_another_has_nothing_of_root_left_and_hides_its_memory() -> None:
    user = pwd.getpwnam("daemon")
    uids, gids, groups, _, capabilities, owner = look("become('daemon')")
    assert uids == [user.pw_uid] * 3
    assert gids == [user.pw_gid] * 3
    assert sorted(groups) == sorted(os.getgrouplist("daemon", user.pw_gid))
    assert int(capabilities, 16) == 0
    # As proc(5) has it: root's, where the process is not "dumpable".
    assert owner == 0


@as_root
def test_there_is_no_way_back() -> None:
    code = "become('daemon')\nimport os\ntry: os.setuid(0)\nexcept PermissionError: pass"
    assert 0 not in look(code)[0]


def test_nobody_becomes_who_is_not_there() -> None:
    code = "from relay.processes import *\ntry: become('no-such-user')\nexcept StartError: print(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"1\n"


def test_no_new_privileges() -> None:
    assert look("")[3] in "01"
    assert look("refuse_new_privileges()")[3] == "1"
