"""Batches of concurrent calls, and the connection that sends them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis import ResponseError

from service.async_store import AsyncStore, Batcher
from tests.polling import eventually_async
from worker.jobs import commands
from worker.jobs.commands import ScriptCall
from worker.jobs.errors import JobNotFound, QueueUnavailable

NOBODY = f"job_{0:032x}"


class Way:
    """A slow way that doubles numbers, refuses negative ones, and is closed to zero."""

    def __init__(self) -> None:
        self.journeys: list[list[int]] = []

    async def __call__(self, asked: Sequence[int]) -> list[int | Exception]:
        self.journeys.append(list(asked))
        await asyncio.sleep(0.02)
        if 0 in asked:
            raise ConnectionError("closed")
        return [2 * number if number > 0 else ValueError(str(number)) for number in asked]


async def ask_all(batcher: Batcher[int, int], numbers: Sequence[int]) -> list[Any]:
    return await asyncio.gather(*(batcher.submit(number) for number in numbers), return_exceptions=True)


def test_calls_made_during_a_batch_go_with_the_next_batch() -> None:
    async def journeys() -> list[list[int]]:
        way = Way()
        batcher = Batcher(way)
        first = asyncio.create_task(batcher.submit(1))
        await eventually_async(lambda: way.journeys)
        assert await ask_all(batcher, [2, 3, 4]) == [4, 6, 8]
        assert await first == 2
        return way.journeys

    assert asyncio.run(journeys()) == [[1], [2, 3, 4]]


def test_an_error_reaches_only_its_caller() -> None:
    answers = asyncio.run(ask_all(Batcher(Way()), [1, -2, 3]))
    assert (answers[0], str(answers[1]), answers[2]) == (2, "-2", 6)


def test_a_lost_connection_fails_the_whole_batch_and_later_calls_work_again() -> None:
    async def both() -> tuple[list[Any], int]:
        batcher = Batcher(Way())
        return await ask_all(batcher, [1, 0]), await batcher.submit(5)

    refused, later = asyncio.run(both())
    assert [type(error) for error in refused] == [ConnectionError, ConnectionError]
    assert later == 10


def test_a_cancelled_caller_delays_no_other() -> None:
    async def impatient() -> int:
        way = Way()
        batcher = Batcher(way)
        first = asyncio.create_task(batcher.submit(1))
        await eventually_async(lambda: way.journeys)
        first.cancel()
        return await batcher.submit(2)

    assert asyncio.run(impatient()) == 4


def test_closing_cancels_every_waiting_call() -> None:
    async def closed() -> list[Any]:
        way = Way()
        batcher = Batcher(way)
        waiting = asyncio.create_task(ask_all(batcher, [1, 2]))
        await eventually_async(lambda: way.journeys)
        await batcher.close()
        return await asyncio.wait_for(waiting, 1)

    assert [type(answer) for answer in asyncio.run(closed())] == [asyncio.CancelledError] * 2


async def asked_on(url: str, *asked: ScriptCall[Any], between: Callable[[], object] = bool) -> list[Any]:
    """Answers to questions asked one after the other, with something happening after each."""
    store = AsyncStore(url, deadline_s=1.0)
    answers: list[Any] = []
    for question in asked:
        answers += await asyncio.gather(store.run(question), return_exceptions=True)
        between()
        await asyncio.sleep(0.05)  # the loop hears of a connection that ended
    await store.close()
    return answers


def test_a_command_that_fails_leaves_the_connection_usable(redis_url: str) -> None:
    bad: ScriptCall[Any] = ScriptCall("transitions.submit", {}, lambda reply: reply)  # its arguments are missing
    refused, page, unknown = asyncio.run(asked_on(redis_url, bad, commands.page(), commands.detail(NOBODY)))
    assert isinstance(refused, ResponseError)
    assert (page.rows, type(unknown)) == ((), JobNotFound)


def test_a_redis_that_restarted_is_used_again(start_redis: Callable[..., Any]) -> None:
    server = start_redis()

    def restart() -> None:
        server.kill()
        server.start()

    first, second = asyncio.run(asked_on(server.url, commands.page(), commands.page(), between=restart))
    assert (first.rows, second.rows) == ((), ())


def test_a_redis_that_is_gone_is_unavailable(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    first, second = asyncio.run(asked_on(server.url, commands.page(), commands.page(), between=server.kill))
    assert (first.rows, type(second)) == ((), QueueUnavailable)
