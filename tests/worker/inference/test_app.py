"""The inference application around a fake model cache."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from model_core.errors import RunNotFound
from tests.polling import eventually_async
from worker.inference.app import create_app
from worker.jobs.settings import InferenceSettings


class SlowLayout:
    """Finds no attention, after as long as it is told."""

    def __init__(self) -> None:
        self.attention = Path("attention")
        self.looking, self.asked, self.enough = 0, 0, threading.Event()
        self.most = 0

    def attention_of(self, run: str) -> Path:
        self.asked, self.looking = self.asked + 1, self.looking + 1
        self.most = max(self.most, self.looking)
        self.enough.wait(10)
        self.looking -= 1
        raise RunNotFound(run)


class NoModels:
    """A model cache that is empty."""

    def __init__(self) -> None:
        self.device, self.open_requests, self.settings = "cpu", 0, InferenceSettings()
        self.layout = SlowLayout()

    def info(self) -> list[object]:
        return []

    def totals(self) -> dict[str, int]:
        return {}


def test_a_cancelled_capture_keeps_its_slot_until_it_ends() -> None:
    models = NoModels()
    layout = models.layout

    async def scene() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(models))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://inference") as http:
            ask = {"request": {"run": "tiny", "id": "0", "checkpoint": "model_best.pt"}, "sha256": "0" * 64}
            left = asyncio.ensure_future(http.post("/capture", json=ask))
            await eventually_async(lambda: layout.asked == 1)
            left.cancel()
            second = asyncio.ensure_future(http.post("/capture", json=ask))
            await asyncio.sleep(0.2)  # the second does not begin in the meantime
            assert layout.asked == 1
            layout.enough.set()
            return await second

    reply = asyncio.run(scene())
    assert (reply.status_code, reply.json()["code"]) == (404, "run_not_found")
    assert (layout.asked, layout.most) == (2, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "gpu01:8100"}, 200),  # as the API knows it
        ({"Host": "localhost:8100"}, 200),
        ({"Host": "10.0.0.5:8100"}, 200),  # where the connection arrived
        ({"Host": "evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
def test_only_the_api_is_answered_and_no_page(headers: dict[str, str], status: int) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(NoModels(), names=["gpu01"]))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.5:8100") as http:
            return await http.get("/healthz", headers=headers)

    assert asyncio.run(ask()).status_code == status
