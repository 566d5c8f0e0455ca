"""Work for a client: its result, and its end when the client leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from worker.web.disconnect import while_connected


class Client:
    """A client that stays until it is told to leave."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self._has_sent = False
        self.request = Request({"type": "http", "headers": []}, self._receive)

    async def _receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}


class Work:
    """Work that takes long, and knows whether it was cancelled."""

    was_cancelled = False

    async def __call__(self) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "done"


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 5))


def test_the_result_is_that_of_the_work() -> None:
    async def scene() -> None:
        client = Client()
        assert await while_connected(client.request, asyncio.sleep(0, "done")) == "done"
        client.leaves.set()
        await asyncio.sleep(0)  # what comes later cancels nobody

    run(scene())


def test_an_error_of_the_work_is_passed_on() -> None:
    async def fail() -> None:
        raise LookupError

    async def scene() -> None:
        with pytest.raises(LookupError):
            await while_connected(Client().request, fail())

    run(scene())


def test_a_client_that_leaves_cancels_the_work() -> None:
    async def scene() -> None:
        client, work = Client(), Work()
        asyncio.get_running_loop().call_later(0.01, client.leaves.set)
        with pytest.raises(ClientDisconnect):
            await while_connected(client.request, work())
        assert work.was_cancelled
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0  # the caller goes on

    run(scene())


def test_a_server_that_stops_cancels_the_work_and_its_caller() -> None:
    async def scene() -> None:
        work = Work()
        serving = asyncio.create_task(while_connected(Client().request, work()))
        asyncio.get_running_loop().call_later(0.01, serving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert work.was_cancelled

    run(scene())
