"""The inference application around a fake model cache."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from model_core.errors import RunNotFound
from model_core.storage.files import Layout
from tests.polling import eventually_async
from worker.inference.app import create_app
from worker.jobs.settings import InferenceSettings


class SlowModels:
    """Loads a model for as long as it is told, and then has none."""

    def __init__(self) -> None:
        self.loading, self.asked, self.enough = 0, 0, threading.Event()
        self.most = 0
        self.device, self.open_requests, self.settings = "cpu", 0, InferenceSettings()
        self.layout = Layout.under(Path("nowhere"))

    def info(self) -> list[object]:
        return []

    def totals(self) -> dict[str, int]:
        return {}

    def module(self, run: str, file: str, sha256: str) -> None:
        self.asked, self.loading = self.asked + 1, self.loading + 1
        self.most = max(self.most, self.loading)
        self.enough.wait(10)
        self.loading -= 1
        raise RunNotFound(run)


def test_a_cancelled_capture_keeps_its_slot_until_it_ends() -> None:
    models = SlowModels()

    async def scene() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(models))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://inference") as http:
            ask = {"request": {"run": "tiny", "id": "0", "checkpoint": "model_best.pt"}, "sha256": "0" * 64}
            left = asyncio.ensure_future(http.post("/capture", json=ask))
            await eventually_async(lambda: models.asked == 1)
            left.cancel()
            second = asyncio.ensure_future(http.post("/capture", json=ask))
            await asyncio.sleep(0.2)  # the second does not begin in the meantime
            assert models.asked == 1
            models.enough.set()
            return await second

    reply = asyncio.run(scene())
    assert (reply.status_code, reply.json()["code"]) == (404, "run_not_found")
    assert (models.asked, models.most) == (2, 1)


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
        transport = httpx.ASGITransport(create_app(SlowModels(), names=["gpu01"]))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.5:8100") as http:
            return await http.get("/healthz", headers=headers)

    assert asyncio.run(ask()).status_code == status
