"""The inference application around a fake model cache."""

import asyncio
import threading

import httpx

from model_core.errors import RunNotFound
from tests.polling import eventually_async
from worker.inference.app import create_app


class SlowModels:
    """Loads a model for as long as it is told, and then has none."""

    def __init__(self) -> None:
        self.loading, self.asked, self.enough = 0, 0, threading.Event()
        self.most = 0

    def get(self, run: str, file: str, sha256: str) -> None:
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
