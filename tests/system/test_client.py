"""`relay.client` against the real thing, parts of which are killed around it.

Where and when to kill is random; the seed is shown with a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from relay.client import (
    DisplayData,
    Execution,
    GaveUp,
    InputRequest,
    Kernel,
    KernelGone,
    KernelRestarted,
    RelayClient,
    Replaced,
    Settings,
    Stream,
)
from relay.errors import NotFound, Unauthorized
from tests.system.channels import count_lines
from tests.system.running import RunningRelay, wait_for

LINES: Final = 2000
PRINTED: Final = [f"line {number}" for number in range(LINES)]
CODE: Final = f"""
import time
runs = globals().get("runs", 0) + 1
for number in range({LINES}):
    print("line", number, flush=True)
    if number % 20 == 19: time.sleep(0.02)
"""
"""It takes some three seconds, so that there is time to kill something in it."""


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    with RunningRelay(("alpha",)) as running:
        yield running


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**32)  # noqa: S311 - not a secret
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    return random.Random(seed)  # noqa: S311


@contextlib.asynccontextmanager
async def client_of(relay: RunningRelay, **options: Any) -> AsyncIterator[RelayClient]:
    info = relay.info
    given = {"token": info.token, "ws_url": f"{info.wss_url}/alpha", "ssl": relay.tls, **options}
    async with RelayClient(f"{info.https_url}/alpha", **given) as client:
        yield client


# --- what is killed -------------------------------------------------------------------------


def one_worker(relay: RunningRelay) -> None:
    """The next kill has new workers to choose from."""
    workers = wait_for("two workers", lambda: relay.info.pids.edge[1:] and relay.info.pids.edge)
    os.kill(workers[0], signal.SIGKILL)
    wait_for("another worker", lambda: workers[0] not in relay.info.pids.edge)


def all_workers(relay: RunningRelay) -> None:
    workers = wait_for("two workers", lambda: relay.info.pids.edge[1:] and relay.info.pids.edge)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for("other workers", lambda: not {*workers} & {*relay.info.pids.edge})


def agent(relay: RunningRelay) -> None:
    relay.kill_agent("alpha")


def edge_and_agent(relay: RunningRelay) -> None:
    workers = relay.info.pids.edge
    relay.kill_agent("alpha")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for("other workers", lambda: not {*workers} & {*relay.info.pids.edge})


@contextlib.contextmanager
def away(relay: RunningRelay, number: signal.Signals = signal.SIGKILL) -> Iterator[None]:
    """All of `relay up`, started again on its ports at the block's end."""
    ports = [url.rpartition(":")[2] for url in (relay.info.https_url, relay.info.wss_url)]
    relay.stop(number)
    try:
        yield
    finally:
        relay.restart_on(*ports)


def everything(relay: RunningRelay) -> None:
    with away(relay):
        pass


def everything_politely(relay: RunningRelay) -> None:
    with away(relay, signal.SIGTERM):
        pass


slow = pytest.mark.slow
KILLS: Final = [
    all_workers,
    *(
        pytest.param(kill, marks=slow)
        for kill in (one_worker, agent, edge_and_agent, everything, everything_politely)
    ),
]


async def lines_of(
    execution: Execution, moments: list[int], disturb: Callable[[], object]
) -> list[str]:
    """What a cell prints; at so many lines, something is done to the relay meanwhile."""
    text = ""
    left = sorted(moments)
    async with asyncio.TaskGroup() as tasks:
        last: asyncio.Task[object] | None = None
        async for output in execution:
            assert isinstance(output, Stream), output
            text += output.text
            if left and text.count("\n") > left[0] and (last is None or last.done()):
                left.pop(0)
                last = tasks.create_task(asyncio.to_thread(disturb))
    return text.splitlines()


async def runs(kernel: Kernel) -> str | None:
    return (await kernel.run("runs")).value


# --- exactly once ---------------------------------------------------------------------------


@pytest.mark.parametrize("kill", KILLS)
async def test_whatever_is_killed_a_script_has_each_line_once(
    own: RunningRelay, dice: random.Random, kill: Callable[[RunningRelay], None]
) -> None:
    moments = [dice.randrange(1, LINES - 600)]
    async with client_of(own) as client:
        kernel = await client.start()
        execution = kernel.execute(CODE)
        lines = await lines_of(execution, moments, lambda: kill(own))
        assert count_lines("\n".join(lines), PRINTED) == (0, 0, 0, 0)
        assert execution.reply is not None
        assert execution.reply["status"] == "ok"
        assert kernel.repeated == 0
        assert await runs(kernel) == "1"
        if kill not in {agent, one_worker}:
            assert kernel.connections > 1
        await kernel.shutdown()


@pytest.mark.parametrize("kill", [all_workers, pytest.param(edge_and_agent, marks=slow)])
async def test_requests_run_once_and_in_order_whenever_they_are_sent(
    own: RunningRelay, dice: random.Random, kill: Callable[[RunningRelay], None]
) -> None:
    count = 150
    at = dice.randrange(count // 2)
    async with client_of(own) as client:
        kernel = await client.start()
        await kernel.run("seen = []")
        executions = []
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                if number == at:
                    tasks.create_task(asyncio.to_thread(kill, own))
                executions.append(kernel.execute(f"seen.append({number}); print({number})"))
                await asyncio.sleep(0.01)
            results = [await each.result() for each in executions]
        assert [each.stdout for each in results] == [f"{number}\n" for number in range(count)]
        assert (await kernel.run("seen == list(range(len(seen))) and len(seen)")).value == "150"
        assert kernel.repeated == 0
        await kernel.shutdown()


@slow
async def test_what_is_sent_while_the_relay_is_away_runs_when_it_is_back(own: RunningRelay) -> None:
    async with client_of(own) as client:
        kernel = await client.start()
        first = kernel.execute(CODE)
        await anext(first)
        with away(own):
            executions = [kernel.execute("runs += 1; print(runs)") for _ in range(2)]
            kernels = asyncio.ensure_future(client.kernels())  # noqa: TID251 - awaited below
            await asyncio.sleep(1.0)
            assert not kernels.done()
        lines = (await first.result()).stdout.splitlines()
        assert count_lines("\n".join([PRINTED[0], *lines]), PRINTED)[0] == 0
        assert [(await each.result()).stdout for each in executions] == ["2\n", "3\n"]
        assert kernel.id in {each.id for each in await kernels}
        await kernel.shutdown()


@slow
async def test_a_large_display_survives_a_kill(own: RunningRelay) -> None:
    size = 30_000_000
    code = f"from IPython.display import display; display({{'text/plain': 'x' * {size}}}, raw=True)"
    async with client_of(own) as client:
        kernel = await client.start()
        execution = kernel.execute(code)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(all_workers, own))
            result = await execution.result()
        (output,) = result.outputs
        assert isinstance(output, DisplayData)
        assert len(output.data["text/plain"]) == size
        await kernel.shutdown()


async def test_a_slow_script_costs_no_memory_and_loses_nothing(own: RunningRelay) -> None:
    settings = Settings(queue_bytes=100_000)
    code = "for number in range(400): print('x' * 100_000, flush=True)"
    async with client_of(own, settings=settings) as client:
        kernel = await client.start()
        execution = kernel.execute(code)
        await asyncio.sleep(3.0)
        ledger = kernel._session.tracker
        assert ledger.held_bytes < 1_000_000
        result = await execution.result()
        assert len(result.stdout) == 400 * 100_001
        await kernel.shutdown()


# --- another process goes on ----------------------------------------------------------------

SCRIPT: Final = """
import asyncio, json, os, ssl, sys
from relay.client import RelayClient, Stream

async def main(url, ws_url, ca, kernel_id, session_id, code, file):
    tls = ssl.create_default_context(cafile=ca)
    async with RelayClient(url, token=os.environ["TOKEN"], ws_url=ws_url, ssl=tls) as relay:
        stored = json.load(open(file)) if os.path.exists(file) else {"position": None, "lines": ""}
        kernel = await relay.connect(
            kernel_id, session_id=session_id, last_seq=stored["position"]
        )
        async for output in kernel.resume("the-cell", code):
            assert isinstance(output, Stream), output
            stored = {"position": kernel.position, "lines": stored["lines"] + output.text}
            with open(file + ".new", "w") as new:
                json.dump(stored, new)
            os.replace(file + ".new", file)
        print("done", kernel.repeated)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.guarantee
@slow
async def test_a_script_that_is_killed_goes_on_in_another_process(
    own: RunningRelay, tmp_path: Path, dice: random.Random
) -> None:
    info, file = own.info, tmp_path / "stored"
    kernel_id = own.start_kernel("alpha")
    arguments = [
        *(f"{info.https_url}/alpha", f"{info.wss_url}/alpha", str(info.ca), kernel_id),
        *("the-script", CODE, str(file)),
    ]
    pauses = [dice.uniform(0.2, 1.0) for _ in range(4)]
    for pause in [*pauses, None]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, *arguments),
            env={**own.environ, "TOKEN": info.token},
            stdout=asyncio.subprocess.PIPE,
        )
        if pause is not None:
            await asyncio.to_thread(wait_for, "output", file.exists)
            await asyncio.sleep(pause)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        said, _ = await process.communicate()
    assert said == b"done 0\n"
    stored = file.read_text()
    assert count_lines(
        stored.split('"lines": "')[1].rstrip('"}').replace("\\n", "\n"), PRINTED
    ) == (*(0, 0, 0, 0),)
    async with client_of(own) as client:
        kernel = await client.connect(kernel_id)
        assert await runs(kernel) == "1"
        await kernel.shutdown()


# --- the rest of its life -------------------------------------------------------------------


async def test_questions_are_answered_once(own: RunningRelay) -> None:
    async def answer(question: InputRequest) -> str:
        asked.append(question.prompt)
        return f"answer {len(asked)}"

    asked: list[str] = []
    async with client_of(own) as client:
        kernel = await client.start()
        code = "print([input(f'{n}?') for n in range(20)])"
        execution = kernel.execute(code, on_input=answer)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(all_workers, own))
            result = await execution.result()
        assert result.stdout == f"{[f'answer {n + 1}' for n in range(20)]}\n"
        assert asked == [f"{n}?" for n in range(20)]
        assert (await kernel.run("input()")).error is not None
        await kernel.shutdown()


STUBBORN: Final = """
print('there', flush=True)
while True:
    try: time.sleep(600)
    except KeyboardInterrupt: pass
"""
"""Others are interrupted before their kernel restarts, and answer."""


async def test_interrupt_and_restart(own: RunningRelay) -> None:
    async with client_of(own) as client:
        kernel = await client.start()
        running = kernel.execute("import time; print('here', flush=True); time.sleep(600)")
        assert await anext(running) == Stream("stdout", "here\n")
        await kernel.interrupt()
        result = await running.result()
        assert result.error is not None
        assert result.error.ename == "KeyboardInterrupt"
        running = kernel.execute(STUBBORN)
        queued = kernel.execute("1")
        assert await anext(running) == Stream("stdout", "there\n")
        await kernel.restart()
        after = kernel.execute("'time' in globals()")
        for each in (running, queued):
            with pytest.raises(KernelRestarted):
                await each.result()
        assert (await after.result()).value == "False"
        await kernel.shutdown()


async def test_a_kernel_whose_process_dies_is_told(own: RunningRelay) -> None:
    async with client_of(own) as client:
        kernel = await client.start()
        with pytest.raises(KernelRestarted):
            await kernel.run("import os; os._exit(1)")
        # Until the new process is there, what is sent is dropped, and told likewise.
        for _ in range(100):
            with contextlib.suppress(KernelRestarted):
                assert (await kernel.run("1")).value == "1"
                break
        await kernel.shutdown()
        with pytest.raises(KernelGone):
            await kernel.run("1")


async def test_others_on_the_same_kernel_are_heard(own: RunningRelay) -> None:
    async with client_of(own) as client:
        first = await client.start()
        second = await client.connect(first.id)
        messages = second.messages()
        assert (await second.run("1")).ok
        await first.run("print('hello')")
        async for message in messages:
            if message.msg_type == "stream":
                assert message.content["text"] == "hello\n"
                break
        third = await client.connect(first.id, session_id=first.session_id)
        assert (await third.run("1")).ok
        with pytest.raises(Replaced):
            await first.run("1")
        await third.shutdown()


@slow
async def test_refusals_are_clear(own: RunningRelay) -> None:
    async with client_of(own, token="relay_wrong") as client:
        with pytest.raises(Unauthorized):
            await client.start()
    async with client_of(own) as client:
        unknown = "00000000-0000-4000-8000-000000000000"
        with pytest.raises(NotFound, match=unknown):
            await client.connect(unknown)
        with pytest.raises(NotFound, match="no-such-spec"):
            await client.start("no-such-spec")
    async with client_of(own, settings=Settings(give_up_after=0.5)) as client:
        kernel = await client.start()
        await kernel.shutdown()
        with pytest.raises(KernelGone):
            await kernel.run("1")
        with away(own), pytest.raises(GaveUp, match="give_up_after"):
            await client.kernels()
