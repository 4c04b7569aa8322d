from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from relay.processes import Child, Command
from tests.programs import NOTIFY, READY, python

WAIT = 10.0


def command(*argv: str, environment: dict[str, str] | None = None) -> Command:
    return Command(name="test", argv=argv, environment=environment or {})


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def run(argv: tuple[str, ...], **listeners: int) -> tuple[int, Child]:
    wanted = msgspec.structs.replace(command(*argv), listeners=listeners)
    child = Child.start(wanted, lambda: None)
    async with asyncio.timeout(WAIT):
        return await child.wait(), child


@pytest.mark.parametrize("code", [0, 2, 77])
async def test_the_exit_code_is_told(code: int) -> None:
    assert (await run(python(f"raise SystemExit({code})")))[0] == code


async def test_a_signal_is_told_as_its_negative() -> None:
    assert (await run(python("import os; os.kill(os.getpid(), 9)")))[0] == -9


async def test_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert (await run(python("raise SystemExit(5)")))[0] == 5


async def test_a_program_that_is_not_there() -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        Child.start(command("/no/such/program"), lambda: None)
    assert descriptors() == before


async def test_no_descriptor_is_left_behind() -> None:
    await run(python(""))
    before = descriptors()
    await run(python(""))
    assert descriptors() == before


async def test_ready_and_workers_are_heard() -> None:
    heard = asyncio.Event()
    child = Child.start(
        command(*python(NOTIFY + "notify('X_WORKERS=12,13\\nREADY=1'); signal.pause()")), heard.set
    )
    assert not child.ready
    async with asyncio.timeout(WAIT):
        await heard.wait()
        assert (child.ready, child.workers) == (True, (12, 13))
        child.signal(signal.SIGKILL)
        assert await child.wait() == -9
    child.signal(signal.SIGKILL)  # the pid may be another's by now: nothing is sent


async def test_last_words_are_heard() -> None:
    _, child = await run(python(NOTIFY + "notify('READY=1')"))
    assert child.ready


async def test_words_that_came_with_the_end_are_heard() -> None:
    child = Child.start(command(*python(NOTIFY + "notify('READY=1')")), lambda: None)
    # It has ended before the loop had a chance to look at its socket.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it ends by itself
    assert await child.wait() == 0
    assert child.ready


@pytest.mark.parametrize("words", ["", "READY=0", "X_WORKERS=a,-1", "nonsense", "READY"])
async def test_other_words_mean_nothing(words: str) -> None:
    _, child = await run(python(NOTIFY + f"notify({words!r})"))
    assert (child.ready, child.workers) == (False, ())


async def test_only_the_child_itself_is_believed() -> None:
    source = NOTIFY + "\nif os.fork() == 0: notify('READY=1'); os._exit(0)\nos.wait()"
    _, child = await run(python(source))
    assert not child.ready


async def test_sockets_arrive_at_three_and_four_whatever_they_were() -> None:
    source = (
        "import os, socket, sys\n"
        "a, b = socket.socket(fileno=3), socket.socket(fileno=4)\n"
        "ports = [str(each.getsockname()[1]) for each in (a, b)]\n"
        "ok = ports == sys.argv[1:] and os.environ['LISTEN_FDS'] == '2'\n"
        "ok = ok and os.environ['LISTEN_FDNAMES'] == 'https:wss'\n"
        "os._exit(0 if ok else 1)"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        for https, wss in ((one, two), (two, one)):
            ports = (str(each.getsockname()[1]) for each in (https, wss))
            argv = python(source, *ports)
            assert (await run(argv, https=https.fileno(), wss=wss.fileno()))[0] == 0


async def test_sockets_may_stand_where_others_are_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import os, socket, sys\n"
        "first, *ports = map(int, sys.argv[1:])\n"
        "found = [socket.socket(fileno=first + n).getsockname()[1] for n in range(2)]\n"
        "os._exit(found != ports)"
    )
    base = 500
    for offset in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            os.dup2(server.fileno(), base + offset)
    monkeypatch.setattr("relay.processes.children._FIRST_LISTENER", base)
    with socket.socket(fileno=base) as one, socket.socket(fileno=base + 1) as two:
        ports = [str(each.getsockname()[1]) for each in (two, one)]
        argv = python(source, str(base), *ports)
        assert (await run(argv, https=two.fileno(), wss=one.fileno()))[0] == 0


async def test_nothing_else_is_inherited() -> None:
    source = "import os; os._exit(sum(os.path.exists(f'/proc/self/fd/{n}') for n in range(3, 200)))"
    leak, other = os.pipe()
    os.set_inheritable(leak, True)
    try:
        assert (await run(python(source)))[0] == 0
    finally:
        os.close(leak)
        os.close(other)


async def test_the_environment_is_the_commands_own(tmp_path: Path) -> None:
    source = "import os, sys; open(sys.argv[1], 'w').write(','.join(sorted(os.environ)))"
    environment = {"HERE": "1", "LISTEN_FDS": "9", "LISTEN_PID": "1", "NOTIFY_SOCKET": "@other"}
    child = Child.start(
        command(*python(source, str(tmp_path / "names")), environment=environment), lambda: None
    )
    await child.wait()
    names = (tmp_path / "names").read_text().split(",")
    assert set(names) - {"LC_CTYPE"} == {"HERE", "NOTIFY_SOCKET"}


async def test_a_session_of_its_own_without_input() -> None:
    source = (
        "import os, sys\nsys.exit(not (os.getsid(0) == os.getpid() and sys.stdin.read() == ''))"
    )
    assert (await run(python(source)))[0] == 0


async def test_ignored_signals_are_not_inherited() -> None:
    # `relay up &` in a script ignores SIGINT; a kernel that inherits it cannot be interrupted.
    source = (
        "import signal, sys\n"
        "sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert (await run(python(source)))[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


async def test_whoever_waits_can_give_up() -> None:
    child = Child.start(command(*python(READY)), lambda: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await child.wait()
    child.signal(signal.SIGKILL)
    os.waitpid(child.pid, 0)  # noqa: ASYNC222 - it has been killed
