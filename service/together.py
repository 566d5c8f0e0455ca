"""Questions that come while others are under way wait, and then travel together.

A crowd then costs little more than one: a way to Redis or to a thread is paid once for all who go it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

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
