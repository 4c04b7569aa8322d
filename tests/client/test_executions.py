from __future__ import annotations

import asyncio
import gc

import pytest

from relay.client import InputRequest, Stream
from tests.client.fakeclient import Way, connected
from tests.client.fakekernel import EPOCH, FakeKernel, at
from tests.virtualtime import settle, virtual


@virtual
async def test_a_loop_has_outputs_and_then_the_reply() -> None:
    async with connected(Way(FakeKernel())) as client:
        execution = client.execute("print 2")
        seen = []
        async for output in execution:
            assert execution.reply is None
            seen.append((output, execution.position))
        assert seen == [(Stream("stdout", "0\n"), at(2)), (Stream("stdout", "1\n"), at(3))]
        assert execution.reply == {"status": "ok"}
        with pytest.raises(StopAsyncIteration):
            await anext(execution)


@virtual
async def test_an_exception_is_an_output() -> None:
    async with connected(Way(FakeKernel())) as client:
        result = await client.run("fail")
    assert result.error is not None
    assert (result.error.ename, result.ok) == ("E", False)


@virtual
async def test_questions_are_asked_and_answered() -> None:
    asked = []

    async def answer(question: InputRequest) -> str:
        asked.append(question)
        await asyncio.sleep(1.0)
        return "Ada"

    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        assert (await client.run("ask", on_input=answer)).stdout == "Ada"
    assert asked == [InputRequest("name?", password=False)]


@virtual
async def test_a_question_counts_as_read_only_when_its_answer_has_arrived() -> None:
    kernel = FakeKernel()

    async def answer(_: InputRequest) -> str:
        assert client.position == at(1)
        return "Ada"

    async with connected(Way(kernel)) as client:
        execution = client.execute("ask", on_input=answer)
        async for _ in execution:
            break
        assert client.position == at(3)


class Deaf(FakeKernel):
    """Answers reach it, and nothing comes of them."""

    def _answered(self, value: str) -> None:
        self.answers.append(value)


@virtual
async def test_a_question_whose_answer_nobody_confirmed_is_not_read() -> None:
    async def answer(_: InputRequest) -> str:
        return "Ada"

    kernel = Deaf()
    async with connected(Way(kernel)) as client:
        execution = client.execute("ask", on_input=answer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await anext(execution)
        assert kernel.answers == ["Ada"]
        assert client.position == at(1)


@virtual
async def test_a_question_whose_handler_failed_is_asked_again() -> None:
    answers = iter([ValueError("no"), "Ada"])

    async def answer(_: InputRequest) -> str:
        value = next(answers)
        if isinstance(value, Exception):
            raise value
        return str(value)

    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        execution = client.execute("ask", on_input=answer)
        with pytest.raises(ValueError, match="no"):
            await anext(execution)
        assert (await execution.result()).stdout == "Ada"
    assert kernel.answers == ["Ada"]


@virtual
async def test_a_wait_that_is_cut_short_loses_nothing() -> None:
    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        execution = client.execute("hold")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await anext(execution)
        kernel.release("here")
        assert (await execution.result()).stdout == "here"


@virtual
async def test_all_messages_can_be_heard() -> None:
    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        messages = client.messages()
        await settle()
        kernel.publish("stream", {"name": "stdout", "text": "another client's"})
        heard = await anext(messages)
        assert (heard.msg_type, heard.content["text"]) == ("stream", "another client's")
        assert str(heard.seq) == f"{EPOCH}-1"
        await client.run("print 1")
        assert client.position == at(1)  # these are still to be read
        rest = [(await anext(messages)).msg_type for _ in range(4)]
        assert rest == ["status", "stream", "execute_reply", "status"]
        assert client.position == at(5)


@virtual
async def test_messages_that_nobody_holds_are_not_kept() -> None:
    async with connected(Way(FakeKernel())) as client:
        messages = client.messages()
        dropped = client.messages()
        await client.run("print 1")
        messages.close()
        messages.close()
        del dropped
        gc.collect()
        assert client.position == at(4)
        assert client._session.tracker.held_bytes == 0


@virtual
async def test_the_end_of_everything_ends_the_messages_too() -> None:
    async with connected(Way(FakeKernel())) as client:
        messages = client.messages()
        await client.close()
        with pytest.raises(Exception, match="closed"):
            await anext(messages)
