"""The short way to Redis for what is asked most often: from the event loop itself, without a thread in between.

One connection carries all questions, those of a crowd together: what the client library does once a command it does
once a crowd. A stream of its own for each request would wait longer for the connection than for Redis.

Questions that come while others are under way wait, and then travel together.

A crowd then costs little more than one: a way to Redis or to a thread is paid once for all who go it.

Sends wake-ups to the workers, at a pace: each costs more than a submission, and one says all that many would.

What is asked for is never lost: after a crowd of requests some more wake-ups follow, for workers with several slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError
from starlette.concurrency import run_in_threadpool

from worker.jobs.celery_app import wake
from worker.jobs.commands import Question, digests, sources
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import reaching

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """Carries the questions of many, for the event loop."""

    def __init__(self, carry: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]]) -> None:
        """Prepare.

        Args:
            carry: Takes questions and brings as many answers; one that is an error is raised to who asked. What it
                raises itself is raised to all.
        """
        self._carry = carry
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._carrier: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Ask, and wait for the answer."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._carrier is None:
            self._carrier = asyncio.create_task(self._carry_all())
        return await answer

    async def close(self) -> None:
        """Stop; who still waits is cancelled."""
        if self._carrier is not None:
            self._carrier.cancel()
            await asyncio.gather(self._carrier, return_exceptions=True)

    async def _carry_all(self) -> None:
        asked: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._waiting:
                asked = [(question, answer) for question, answer in self._waiting if not answer.done()]
                self._waiting = []
                for (_, answer), told in zip(asked, await self._answers([q for q, _ in asked]), strict=True):
                    _tell(answer, told)
        finally:
            self._carrier = None
            for _, answer in (*asked, *self._waiting):
                answer.cancel()

    async def _answers(self, questions: Sequence[Q]) -> Sequence[A | Exception]:
        try:
            return await self._carry(questions)
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked
            return [error] * len(questions)


def _tell(answer: asyncio.Future[A], told: A | Exception) -> None:
    if answer.done():  # who asked has given up
        return
    if isinstance(told, Exception):
        answer.set_exception(told)
    else:
        answer.set_result(told)


T = TypeVar("T")
_Command = tuple[str | int, ...]


class Wire:
    """Asks questions for the event loop."""

    def __init__(self, redis_url: str, deadline_s: float) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=None,  # the deadline is for everything together
            socket_connect_timeout=0.5,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection: redis.asyncio.Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._deadline_s = deadline_s
        self._crowd: Together[Question[Any], Any] = Together(self._carry)

    async def ask(self, question: Question[T]) -> T:
        """Ask one question.

        Raises:
            QueueUnavailable: No answer in time; the script may have run all the same.
        """
        try:
            with reaching():
                async with asyncio.timeout(self._deadline_s):
                    reply = await self._crowd.ask(question)
        except TimeoutError:
            raise QueueUnavailable("no answer in time") from None
        return question.read(reply)

    async def close(self) -> None:
        """Close the connection."""
        await self._crowd.close()
        await self._connection.disconnect()

    async def _carry(self, questions: Sequence[Question[Any]]) -> list[Any]:
        """Run scripts; one that Redis does not know is sent whole, and known from then on."""
        async with asyncio.timeout(self._deadline_s):
            await self._connected()
            shas, texts = digests(), sources()
            replies = await self._transfer([("EVALSHA", shas[q.script], 0, *q.arguments) for q in questions])
            unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            whole = [("EVAL", texts[questions[i].script], 0, *questions[i].arguments) for i in unknown]
            for place, reply in zip(unknown, await self._transfer(whole), strict=True):
                replies[place] = reply
            return replies

    async def _connected(self) -> None:
        if self._connection.is_connected and await self._connection.can_read():
            await self._connection.disconnect(nowait=True)  # nothing was asked: this is its end
        if not self._connection.is_connected:
            await self._connection.connect()  # type: ignore[no-untyped-call]

    async def _transfer(self, commands: Sequence[_Command]) -> list[Any]:
        if commands:
            await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        return [await self._reply() for _ in commands]

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:  # of this command alone
            return error


_PAUSE_S = 0.05
_MOST_OWED = 16


class Ringer:
    """Rings once for every call, up to a bound."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._asked = asyncio.Event()
        self._owed = 0

    def ring(self) -> None:
        """Ask a worker to look at the queue, soon."""
        self._owed = min(self._owed + 1, _MOST_OWED)
        self._asked.set()

    async def run(self) -> None:
        """Ring until cancelled."""
        while True:
            await self._asked.wait()
            self._owed -= 1
            if not self._owed:
                self._asked.clear()
            await run_in_threadpool(wake, self._redis_url)
            await asyncio.sleep(_PAUSE_S)
