"""Kernels run as the OS users of their owners, and can reach nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from relay.bridge.control import Call
from relay.bridge.records import RecordKind, struct_record
from relay.config import KernelSettings
from relay.kernel_folders import KernelRecord, process_started
from tests.system.channels import Channels
from tests.system.os_users import Person, Site, site
from tests.system.running import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def two() -> Iterator[Site]:
    """A site for two people with OS users, and one without."""
    with site() as running:
        yield running


@pytest.fixture
def alices(two: Site) -> Iterator[str]:
    """Alice's kernel."""
    yield from kernel_of(two, two.alice)


@pytest.fixture
def bobs(two: Site) -> Iterator[str]:
    """Bob's kernel."""
    yield from kernel_of(two, two.bob)


def kernel_of(two: Site, person: Person) -> Iterator[str]:
    kernel = two.start_kernel(person)
    yield kernel
    answer = two.ask(person, "DELETE", f"/alpha/api/kernels/{kernel}")
    assert answer.status in (204, 404), answer
    wait_for("no folder", lambda: not two.place(kernel).path.exists())


def run(channels: Channels, code: str) -> Any:
    """What the code prints, as JSON."""
    done = channels.execute(code)
    assert done.replies[0]["status"] == "ok", done.replies
    return json.loads(done.stdout)


WHO = """
import json, os
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid()],
    "groups": sorted(os.getgroups()),
    "cwd": os.getcwd(),
    "environ": dict(os.environ),
    "umask": oct(os.umask(0o077)),
    "files": sorted(os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd")
                    if os.path.islink(f"/proc/self/fd/{f}")),
    "status": open("/proc/self/status").read(),
}))
"""


def test_a_kernel_is_its_owners_process(two: Site, alices: str) -> None:
    user = two.alice.user
    with two.connect(two.alice, alices) as channels:
        who = run(channels, WHO)
    assert who["ids"] == [[user.uid] * 3, [user.gid] * 3]
    assert who["groups"] == sorted(os.getgrouplist(user.name, user.gid))
    assert len(who["groups"]) == 2
    assert who["cwd"] == str(user.home)
    environ = who["environ"]
    assert {name: environ[name] for name in ("HOME", "USER", "LOGNAME", "SHELL")} == {
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": "/bin/sh",
    }
    assert "SECRET_OF_ROOT" not in environ
    assert not [name for name in environ if name.startswith(("LISTEN_", "NOTIFY_", "RELAY_"))]
    assert who["umask"] == "0o77"
    status = dict(line.split(":\t", 1) for line in who["status"].splitlines() if ":\t" in line)
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    place = str(two.place(alices).path)
    inherited = [name for name in who["files"] if name.startswith(str(two.folder))]
    assert set(inherited) <= {f"{place}/kernel.log", str(user.home / ".ipython")} | {
        name for name in inherited if name.startswith(str(user.home))
    }


def test_a_client_cannot_choose_another_home(two: Site) -> None:
    kernel = two.start_kernel(two.alice, env={"HOME": "/root", "KERNEL_USERNAME": "root"})
    with two.connect(two.alice, kernel) as channels:
        found = run(channels, "import json, os; print(json.dumps(dict(os.environ)))")
    assert found["HOME"] == str(two.alice.user.home)
    assert found["KERNEL_USERNAME"] == "alice"
    two.ask(two.alice, "DELETE", f"/alpha/api/kernels/{kernel}")


def test_nobody_without_an_os_user_starts_a_kernel(two: Site) -> None:
    before = sorted((two.state / "alpha" / "kernels").iterdir())
    for path in ("kernels", "sessions"):
        body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
        answer = two.ask(two.carol, "POST", f"/alpha/api/{path}", body)
        assert answer.status == 403, answer
        assert "launch_as" in answer.json["message"]
        assert "carol" not in answer.json["message"]
    assert sorted((two.state / "alpha" / "kernels").iterdir()) == before


def test_nothing_but_the_privileged_helper_is_root(two: Site, alices: str) -> None:
    agent = psutil.Process(two.agent_pid())
    assert set(agent.uids()) == {two.agent_user.uid}
    status = Path(f"/proc/{agent.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "CapPrm:\t0000000000000000" in status
    record = two.record(alices)
    for pid in (record.holder_pid, record.kernel_pid):
        assert set(psutil.Process(pid).uids()) == {two.alice.user.uid}


# --- what a kernel tries ----------------------------------------------------------------------

TRY = """
import ctypes, errno, glob, json, os, signal, socket, struct
tried = {}
def attempt(name, action):
    try:
        value = action()
    except OSError as error:
        tried[name] = errno.errorcode.get(error.errno, str(error))
    else:
        tried[name] = ["done", repr(value)[:200]]
def read(path):
    with open(path, "rb") as file:
        return file.read(1)
def write(path):
    with open(path, "ab") as file:
        return file.write(b"x")
def ask(path):
    # What an agent says first; the answer would be the kernel's status.
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(5)
        channel.connect(path)
        channel.sendall(ATTACH)
        got = channel.recv(1)
        if not got:
            raise OSError(errno.EPIPE, "hung up on")
        return got
def ptrace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(16, pid, 0, 0):  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, pid, 0, 0)
    return "attached"
for name, path in FILES.items():
    attempt("read " + name, lambda: read(path))
    attempt("write " + name, lambda: write(path))
for name, path in FOLDERS.items():
    attempt("list " + name, lambda: os.listdir(path))
    attempt("make in " + name, lambda: os.mkdir(path + "/mine"))
for name, path in SOCKETS.items():
    attempt("connect " + name, lambda: ask(path))
for name, pid in PROCESSES.items():
    attempt("signal " + name, lambda: os.kill(pid, 0))
    attempt("ptrace " + name, lambda: ptrace(pid))
    for part in ("environ", "mem", "maps"):
        attempt(f"{part} of {name}", lambda: read(f"/proc/{pid}/{part}"))
    attempt("cwd of " + name, lambda: os.listdir(f"/proc/{pid}/cwd/"))
    attempt("fd of " + name, lambda: os.listdir(f"/proc/{pid}/fd"))
print(json.dumps(tried))
"""
OWN_HOLDER = ("ptrace", "environ", "mem", "maps", "fd")


def call() -> bytes:
    return b"".join(
        bytes(part) for part in [struct_record(RecordKind.CALL, Call(id=0, op="status"))]
    )


def test_a_kernel_reaches_nothing_of_others(two: Site, alices: str, bobs: str) -> None:
    place, record = two.place(bobs), two.record(bobs)
    own = two.record(alices)
    socket = place.read_address()
    own_socket = two.place(alices).read_address()
    assert socket is not None
    assert own_socket is not None
    assert (record.kernel_pid, own.kernel_pid) != (None, None)
    ipc = list(socket.socket.parent.glob(f"{socket.socket.stem}-*"))
    assert len(ipc) == 5
    segment = next(place.journal.iterdir())
    files = {
        **{f"Bob's {path.name}": str(path) for path in place.path.iterdir() if path.is_file()},
        "Bob's journal": str(segment),
        "a file of Bob's": str(two.bob.user.home / ".bashrc"),
        "tokens": str(two.private / "tokens.json"),
        "ticket key": str(two.private / "ticket.key"),
        "edge key": str(two.private / "edge.key"),
        "edge's client key": str(two.private / "client.key"),
        "agent's key": str(two.etc / "agent.key"),
        "configuration": str(two.etc / "agent-alpha.yaml"),
        "ticket.pub": str(two.etc / "ticket.pub"),
        "/etc/shadow": "/etc/shadow",
    }
    assert {"Bob's record.json", "Bob's connection.json", "Bob's lock"} <= files.keys()
    folders = {
        "kernels": str(two.state / "alpha" / "kernels"),
        "sessions": str(two.state / "alpha" / "sessions"),
        "state": str(two.state),
        "runtime": str(two.runtime),
        "Bob's kernel": str(place.path),
        "Bob's sockets": str(socket.socket.parent),
        "Bob's home": str(two.bob.user.home),
        "private": str(two.private),
        "etc": str(two.etc),
    }
    sockets = {
        "Bob's holder": str(socket.socket),
        "own holder": str(own_socket.socket),
        **{f"Bob's {path.suffix or path.name}": str(path) for path in ipc},
    }
    processes = {
        "privileged helper": two.agent.pid,
        "agent": two.agent_pid(),
        "edge": two.edge.pid,
        "Bob's holder": record.holder_pid,
        "Bob's kernel": record.kernel_pid,
    }
    names = {"FILES": files, "FOLDERS": folders, "SOCKETS": sockets, "PROCESSES": processes}
    code = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    code += f"ATTACH = {call()!r}\n{TRY}"
    with two.connect(two.alice, alices) as channels:
        tried = run(channels, code)
        # The same, to prove that it works where it may.
        mine = {
            "FILES": {"own record": str(two.place(alices).record)},
            "FOLDERS": {"own folder": str(two.place(alices).path)},
            "SOCKETS": {},
            "PROCESSES": {"own kernel": own.kernel_pid, "own holder": own.holder_pid},
        }
        code = "".join(f"{name} = {value!r}\n" for name, value in mine.items())
        control = run(channels, f"{code}ATTACH = b''\n{TRY}")
    assert len(tried) == 2 * len(files) + 2 * len(folders) + len(sockets) + 7 * len(processes)
    assert {name: found for name, found in tried.items() if found not in ("EACCES", "EPERM")} == {
        # It may come as far as its own holder's door, which is for the agent.
        "connect own holder": "EPIPE"
    }
    for name in ("read own record", "list own folder", "signal own holder", "maps of own kernel"):
        assert control[name][0] == "done", (name, control[name])
    # Though it is the same user's, the holder lets nobody look into it.
    for what in ("ptrace own holder", "environ of own holder", "mem of own holder"):
        assert control[what] in ("EACCES", "EPERM"), (what, control[what])
    with two.connect(two.bob, bobs) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"
    assert "peer_rejected" in two.place(alices).holder_log.read_text()


def test_bobs_files_stay_out_of_reach_by_their_modes(two: Site, bobs: str) -> None:
    place = two.place(bobs)
    status = place.path.stat()
    assert (status.st_uid, status.st_gid) == (two.bob.user.uid, two.agent_user.gid)
    assert oct(status.st_mode) == oct(0o043770)
    address = place.read_address()
    assert address is not None
    assert address.socket.parent == two.runtime / str(two.bob.user.uid)
    folder = address.socket.parent.stat()
    assert (folder.st_uid, folder.st_gid) == (two.bob.user.uid, two.agent_user.gid)
    assert oct(folder.st_mode) == oct(0o042750)
    for shared in (two.state, two.runtime, two.state / "alpha", two.state / "alpha" / "kernels"):
        assert shared.stat().st_uid == two.agent_user.uid
        assert shared.stat().st_mode & 0o777 == 0o711


# --- in the agent's place -------------------------------------------------------------------------

TAKE = """
import json, os, socket, ssl, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE)
def listen():
    while True:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORT))
            listener.listen()
            return listener
        except OSError:
            listener.close()
            time.sleep(0.02)
def hear(listener):
    with listener.accept()[0] as accepted:
        accepted.settimeout(2)
        first = accepted.recv(65536, socket.MSG_PEEK).hex()
        try:
            with context.wrap_socket(accepted, server_side=True) as trusted:
                return first, trusted.recv(65536).hex()
        except OSError:
            return first, ""
open(HOME + "/waiting", "w").close()
listener = listen()
open(HOME + "/listening", "w").close()
heard = [hear(listener) for _ in range(2)]
listener.close()
with open(HOME + "/heard.new", "w") as file:
    json.dump(heard, file)
os.rename(HOME + "/heard.new", HOME + "/heard")
"""


def test_a_kernel_in_the_agents_place_gets_nobodys_ticket() -> None:
    with site() as two:
        alices, bobs = two.start_kernel(two.alice), two.start_kernel(two.bob)
        home = two.alice.user.home
        stranger = trustme.CA().issue_cert("127.0.0.1")
        own = home / "own.pem"
        own.write_bytes(stranger.private_key_and_cert_chain_pem.bytes())
        os.chown(own, two.alice.user.uid, two.alice.user.gid)
        names = {"HOME": str(home), "PORT": two.agent.ready["port"], "CERTIFICATE": str(own)}
        code = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + TAKE
        with two.connect(two.alice, alices) as channels:
            channels.submit(code)
            wait_for("the kernel to wait", (home / "waiting").exists)
        two.agent.stop()
        wait_for("the kernel in the agent's place", (home / "listening").exists)
        for _ in range(10):
            answer = two.ask(two.bob, "GET", f"/alpha/api/kernels/{bobs}")
            assert answer.status == 503, answer
            if (home / "heard").exists():
                break
        heard = json.loads((home / "heard").read_text())
        assert len(heard) == 2
        # The edge begins a TLS handshake (RFC 8446 §5.1), and ends it at the certificate.
        assert [bytes.fromhex(first)[:2] for first, _ in heard] == [b"\x16\x03"] * 2
        assert [inside for _, inside in heard] == ["", ""]
        two.start_again()
        assert two.ask(two.bob, "GET", f"/alpha/api/kernels/{bobs}").status == 200


# --- TCP ---------------------------------------------------------------------------------------

KNOCK = """
import hmac, hashlib, json, zmq, time
heard = []
context = zmq.Context()
def knock(curve):
    shell, iopub, control = (context.socket(kind) for kind in (zmq.DEALER, zmq.SUB, zmq.DEALER))
    for each, name in ((shell, "shell"), (iopub, "iopub"), (control, "control")):
        each.linger = 0
        if curve:
            each.curve_publickey, each.curve_secretkey = zmq.curve_keypair()
            each.curve_serverkey = zmq.curve_keypair()[0]
        if each is iopub:
            each.subscribe(b"")
        each.connect(f"tcp://127.0.0.1:{PORTS[name]}")
    header = {"msg_id": "m", "session": "s", "username": "u", "date": "2026-01-01T00:00:00Z",
              "msg_type": "execute_request", "version": "5.3"}
    content = {"code": CODE, "silent": False, "store_history": False, "user_expressions": {},
               "allow_stdin": False, "stop_on_error": True}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    wrong = hmac.new(b"guessed", digestmod=hashlib.sha256)
    for part in parts:
        wrong.update(part)
    for signature in (b"", wrong.hexdigest().encode()):
        for each in (shell, control):
            each.send_multipart([b"<IDS|MSG>", signature, *parts])
    time.sleep(2)
    for each in (shell, iopub, control):
        while each.poll(0):
            heard.append([bytes(part).decode("latin-1")[:80] for part in each.recv_multipart()])
        each.close()
for curve in (False, True):
    knock(curve)
print(json.dumps(heard))
"""


@pytest.mark.parametrize("curve", [True, False], ids=["curve", "signed only"])
def test_a_kernels_ports_are_of_no_use_to_others(curve: bool) -> None:
    with site(kernels=KernelSettings(transport="tcp")) as two:
        alices = two.start_kernel(two.alice)
        bobs = two.start_kernel(two.bob, name="curve" if curve else "no-curve")
        info = json.loads(two.place(bobs).connection_file.read_text())
        assert info["transport"] == "tcp"
        assert bool(info.get("curve_publickey")) is curve
        ports = {name: info[f"{name}_port"] for name in ("shell", "iopub", "control")}
        mark = two.bob.user.home / "mark"
        with (
            two.connect(two.bob, bobs) as owner,
            two.connect(two.alice, alices) as channels,
        ):
            owner.execute("secret = 'of Bob'; print('before')")
            touch = f"open({str(mark)!r}, 'w')"
            code = f"PORTS = {ports!r}\nCODE = {touch!r}\n{KNOCK}"
            msg_id = channels.submit(code)
            for _ in range(20):
                owner.execute("print(secret)")
                time.sleep(0.1)
            done = channels.collect(msg_id)
            heard = json.loads(done.stdout)
            assert owner.execute("print(6 * 7)").stdout == "42\n"
        assert not mark.exists()
        if curve:
            assert heard == []
        else:
            # Nothing was run; but whoever connects hears a PUB socket without Curve.
            assert "execute_reply" not in str(heard)


# --- what a kernel's user writes where the agent reads -----------------------------------------


def as_user(person: Person, code: str, two: Site, kernel: str) -> str:
    with two.connect(person, kernel) as channels:
        return channels.execute(code).stdout


def test_a_stolen_owner_is_not_believed(two: Site, bobs: str) -> None:
    """Alice writes that her kernel is Bob's, and has her holder replaced."""
    alices = two.start_kernel(two.alice)
    request = two.place(alices).request
    forged = request.read_text().replace("token:alice", "token:bob")
    old = two.record(alices)
    as_user(
        two.alice,
        "import os, signal\n"
        f"open({str(request)!r} + '.new', 'w').write({forged!r})\n"
        f"os.replace({str(request)!r} + '.new', {str(request)!r})\n"
        "print('done')",
        two,
        alices,
    )
    assert "token:bob" in request.read_text()
    os.kill(old.holder_pid, signal.SIGKILL)
    wait_for("the end", lambda: not two.place(alices).path.exists())
    wait_for("the kernel's end", lambda: gone(old.kernel_pid))
    listed = two.ask(two.bob, "GET", "/alpha/api/kernels")
    assert listed.status == 200
    assert alices not in str(listed.json)
    assert bobs in str(listed.json)


@pytest.mark.parametrize("what", ["link", "pipe", "huge", "deep", "unreadable"])
def test_a_record_that_is_none_ends_its_own_kernel_only(two: Site, bobs: str, what: str) -> None:
    alices = two.start_kernel(two.alice)
    old, record = two.record(alices), str(two.place(alices).record)
    victim = two.place(bobs)
    how = {
        "link": f"os.symlink({str(victim.record)!r}, path)",
        "pipe": "os.mkfifo(path)",
        "huge": "open(path, 'wb').truncate(1 << 40)",
        "deep": "open(path, 'w').write('{\"kernelspec\": ' + '[' * 100000)",
        "unreadable": "os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o000))",
    }[what]
    # The holder may note something in between: it is stopped first.
    code = f"import os, signal\npath = {record!r}\nos.kill({old.holder_pid}, signal.SIGSTOP)\n"
    with two.connect(two.alice, alices) as channels:
        channels.submit(f"{code}os.unlink(path)\n{how}")
        wait_for("the record to change", lambda: is_changed(two, alices, old))
    os.kill(old.holder_pid, signal.SIGKILL)
    wait_for("the end", lambda: not two.place(alices).path.exists())
    assert two.ask(two.bob, "GET", f"/alpha/api/kernels/{bobs}").status == 200
    with two.connect(two.bob, bobs) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"
    for process in two.alice.user.processes():
        process.kill()


def is_changed(two: Site, kernel: str, old: KernelRecord) -> bool:
    try:
        return two.place(kernel).read_record() != old
    except OSError:
        return True


def test_a_pid_in_a_record_is_killed_with_its_writers_rights_only(two: Site, bobs: str) -> None:
    alices = two.start_kernel(two.alice)
    old = two.record(alices)
    agent, pid = two.agent_pid(), two.record(bobs).kernel_pid
    assert pid is not None
    forged = {
        "holder_pid": agent,
        "holder_started": process_started(agent),
        "epoch": "e",
        "state": "ending",
        "kernel_pid": pid,
        "kernel_started": process_started(pid),
    }
    path = str(two.place(alices).record)
    with two.connect(two.alice, alices) as channels:
        channels.submit(
            f"import os, signal\nos.kill({old.holder_pid}, signal.SIGSTOP)\n"
            f"os.unlink({path!r})\nopen({path!r}, 'w').write({json.dumps(forged)!r})"
        )
        wait_for("the record to change", lambda: is_changed(two, alices, old))
        time.sleep(0.5)
    os.kill(old.holder_pid, signal.SIGKILL)
    wait_for("the end", lambda: not two.place(alices).path.exists())
    assert two.agent_pid() == agent
    assert process_started(pid) == forged["kernel_started"]
    with two.connect(two.bob, bobs) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"
    for process in two.alice.user.processes():
        process.kill()


def test_a_socket_that_leads_to_bobs_holder_is_not_used(two: Site, bobs: str) -> None:
    alices = two.start_kernel(two.alice)
    mine, his = two.place(alices).read_address(), two.place(bobs).read_address()
    assert mine is not None
    assert his is not None
    as_user(
        two.alice,
        f"import os\nos.unlink({str(mine.socket)!r})\n"
        f"os.symlink({str(his.socket)!r}, {str(mine.socket)!r})",
        two,
        alices,
    )
    before = two.record(bobs)
    answer = two.ask(two.alice, "GET", f"/alpha/api/kernels/{alices}/messages")
    assert answer.status == 503, answer
    with contextlib.suppress(Exception), two.connect(two.alice, alices) as channels:
        channels.submit("raise SystemExit")
        time.sleep(2)
    assert two.record(bobs) == before
    assert "holder_rejected" in two.agent.log.read_text()
    with two.connect(two.bob, bobs) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"
    assert two.ask(two.alice, "DELETE", f"/alpha/api/kernels/{alices}").status == 204


# --- lives and deaths --------------------------------------------------------------------------


def gone(pid: int | None) -> bool:
    return pid is None or process_started(pid) is None


def uid_of(pid: int | None) -> int:
    return int(psutil.Process(pid).uids().real)


def test_a_kernel_outlives_its_agent_and_its_holder(two: Site, alices: str) -> None:
    with two.connect(two.alice, alices) as channels:
        channels.execute("kept = 'in memory'")
        agent = two.agent_pid()
        helper = two.agent.pid
        os.kill(agent, signal.SIGKILL)
        assert channels.execute("print(kept)").stdout == "in memory\n"
        assert two.agent_pid(other_than=agent) != agent
        assert psutil.Process(helper).is_running()
        old = two.record(alices)
        os.kill(old.holder_pid, signal.SIGKILL)
        assert channels.execute("print(kept)").stdout == "in memory\n"
        new = two.record(alices)
        assert new.holder_pid != old.holder_pid
        assert new.kernel_pid == old.kernel_pid
        assert uid_of(new.holder_pid) == two.alice.user.uid
        # Restarted by a holder that did not launch it, it is still Alice's.
        assert two.ask(two.alice, "POST", f"/alpha/api/kernels/{alices}/restart", {}).status == 200
        assert uid_of(two.record(alices).kernel_pid) == two.alice.user.uid
        msg_id = channels.submit("import time; time.sleep(600)")
        time.sleep(1)
        interrupt = f"/alpha/api/kernels/{alices}/interrupt"
        assert two.ask(two.alice, "POST", interrupt, {}).status == 204
        assert channels.collect(msg_id).replies[0]["ename"] == "KeyboardInterrupt"


def test_a_dead_kernel_is_started_again_as_its_owner(two: Site, alices: str) -> None:
    old = two.record(alices)
    assert old.kernel_pid is not None
    os.kill(old.kernel_pid, signal.SIGKILL)
    wait_for("another kernel", lambda: two.record(alices).kernel_pid not in (None, old.kernel_pid))
    assert uid_of(two.record(alices).kernel_pid) == two.alice.user.uid
    with two.connect(two.alice, alices) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"


def test_a_kernel_that_is_stopped_leaves_nothing(two: Site) -> None:
    kernel = two.start_kernel(two.alice)
    record, address = two.record(kernel), two.place(kernel).read_address()
    assert two.ask(two.alice, "DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    wait_for("no folder", lambda: not two.place(kernel).path.exists())
    wait_for("no processes", lambda: gone(record.holder_pid) and gone(record.kernel_pid))
    assert address is not None
    assert not list(address.socket.parent.glob(f"{address.socket.stem}*"))
    # The id is free, for somebody else too.
    assert two.start_kernel(two.bob, kernel_id=kernel) == kernel
    assert uid_of(two.record(kernel).holder_pid) == two.bob.user.uid
    # And taken.
    body = {"name": "python3", "kernel_id": kernel}
    assert two.ask(two.alice, "POST", "/alpha/api/kernels", body).status in (404, 409)
    assert two.ask(two.bob, "DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_what_a_dead_start_left_is_ended(two: Site) -> None:
    """Holder and agent die while a kernel that will never be heard starts."""
    kernel = two.start_kernel(two.alice)
    record = two.record(kernel)
    path = two.place(kernel).record
    forged = path.read_text().replace('"state":"ready"', '"state":"starting"')
    path.write_text(forged)
    os.kill(record.holder_pid, signal.SIGKILL)
    wait_for("the kernel's end", lambda: gone(record.kernel_pid))
    wait_for("no folder", lambda: not two.place(kernel).path.exists())
    kernels = two.state / "alpha" / "kernels"
    wait_for("nothing hidden", lambda: not list(kernels.glob(".*")))


def test_a_culled_kernel_leaves_nothing(two: Site) -> None:
    kernel = two.start_kernel(two.alice, name="short")
    record = two.record(kernel)
    wait_for("its end", lambda: gone(record.holder_pid) and gone(record.kernel_pid))
    wait_for("no folder", lambda: not two.place(kernel).path.exists())


def test_kernels_outlive_the_privileged_helper_and_end_when_root_says_so() -> None:
    with site() as two:
        alices, bobs = two.start_kernel(two.alice), two.start_kernel(two.bob)
        agent = two.agent_pid()
        with two.connect(two.alice, alices) as channels:
            channels.execute("kept = 'in memory'")
        os.kill(two.agent.pid, signal.SIGKILL)
        wait_for("the agent to end with it", lambda: gone(agent))
        old = two.record(alices)
        assert not gone(old.holder_pid)
        # One that nobody cleaned up, nor an agent heard of.
        os.kill(old.holder_pid, signal.SIGKILL)
        two.start_again()
        with two.connect(two.alice, alices) as channels:
            assert channels.execute("print(kept)").stdout == "in memory\n"
        new = two.record(alices)
        assert (new.kernel_pid, uid_of(new.holder_pid)) == (old.kernel_pid, two.alice.user.uid)
        assert two.agent.stop() == 0
        assert not gone(new.holder_pid)
        his = two.record(bobs)
        # A holder that does not listen is ended with its user's rights.
        os.kill(his.holder_pid, signal.SIGSTOP)
        done = two.end_kernels()
        assert (done.returncode, done.stderr.count("relay: ")) == (0, 0), done
        assert "Ended 2 kernels." in done.stdout
        pids = (new.holder_pid, new.kernel_pid, his.holder_pid, his.kernel_pid)
        wait_for("their end", lambda: all(map(gone, pids)))
        assert not two.place(bobs).path.exists()
        assert not two.place(alices).exists()
