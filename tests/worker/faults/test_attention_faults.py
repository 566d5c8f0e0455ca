"""More captures of attention at once than may wait for their turn."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from model_core.attention.record import text_directory
from model_core.attention.texts import text_lock
from model_core.schemas import tokens_id
from tests.polling import eventually
from tests.service.real_host import RealSite

WAITING = 32  # captures that may wait for their turn
WAIT_S = 60.0


def test_one_capture_too_many_is_refused_with_a_time_and_the_others_are_served(tmp_path: Path, redis_url: str) -> None:
    site = RealSite(tmp_path / "data", redis_url)
    site.add_model("tiny")

    def post(number: int) -> httpx.Response:
        return httpx.post(f"{site.url}/attention", json={"run": "tiny", "tokens": [number, 1]}, timeout=WAIT_S)

    with ThreadPoolExecutor(WAITING + 4) as pool:
        with text_lock(text_directory(site.layout, "tiny", tokens_id([0, 1]))):
            asked = [pool.submit(post, 0)]
            eventually(site.loaded_models)
            asked += [pool.submit(post, number) for number in range(1, WAITING + 4)]
            eventually(lambda: sum(one.done() for one in asked) == 3)
        replies = [one.result() for one in asked]
    site.close()
    refused = [reply for reply in replies if reply.status_code != 201]
    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(503, "inference_unavailable")] * 3
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)
