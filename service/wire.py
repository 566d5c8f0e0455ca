"""The short way to Redis for what is asked most often: from the event loop itself, without a thread in between.

One connection carries all questions, those of a crowd together: what the client library does once a command it does
once a crowd. A stream of its own for each request would wait longer for the connection than for Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

from service.together import Together
from worker.jobs.connection import reaching
from worker.jobs.errors import QueueUnavailable
from worker.jobs.questions import Question
from worker.jobs.scripts import digests, sources

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
