"""Which attention stays on disk, and what is served of it, with a real inference application and real models."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_core.attention.exact import EXACT
from model_core.attention.heads.patterns import patterns_bytes
from model_core.attention.quota import record_bytes
from model_core.attention.record import text_directory
from model_core.attention.texts import size_of, text_lock, tree_bytes
from model_core.schemas import tokens_id
from tests.polling import eventually
from tests.service.fake_host import HEADS
from tests.service.real_host import BLOCK, RealSite

HERE = "/attention/tiny/0"
IN_JSON = {"Accept": "application/json"}


@pytest.fixture
def make_real(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., RealSite]]:
    """Start a service with a quota of its own."""
    made: list[RealSite] = []

    def make(**settings: Any) -> RealSite:
        made.append(RealSite(tmp_path / "data", redis_url, **settings))
        return made[-1]

    yield make
    for site in made:
        site.close()


def send(site: RealSite, ids: list[int], **fields: Any) -> httpx.Response:
    reply = site.http.post("/attention", json={"run": "tiny", "tokens": ids, **fields})
    assert reply.status_code in {200, 201}, reply.text
    return reply


def present(site: RealSite, run: str = "tiny") -> list[str]:
    return [text["id"] for text in site.http.get(f"/attention/{run}").json()["data"]]


def test_200_lengths_of_one_text_leave_one_record(make_real) -> None:
    site = make_real()
    site.add_model("tiny")
    ids = np.random.default_rng(0).integers(0, 280, 2 * BLOCK).tolist()
    lengths = [1 + n % (2 * BLOCK) for n in range(200)]
    random.Random(0).shuffle(lengths)
    shown = [len(send(site, ids, max_tokens=length).json()["tokens"]) for length in lengths]
    assert shown == [min(length, BLOCK) for length in lengths]
    [text] = site.http.get("/attention/tiny").json()["data"]
    assert [record["tokens"] for record in text["records"]] == [BLOCK]
    assert sorted(path.name for path in text_directory(site.layout, "tiny", text["id"]).iterdir()) == [
        ".used", "manifest.json", "norms", "statistics.json", "tokens.json", "weights",
    ]  # fmt: skip


def test_a_full_directory_drops_what_was_unused_longest_and_could_be_captured_again(make_real) -> None:
    size = record_bytes(HEADS, BLOCK)
    site = make_real(quota_bytes=int(5.4 * size))
    run = site.add_model("tiny")
    texts = [[number] * BLOCK for number in range(7)]
    names = [tokens_id(ids) for ids in texts]
    send(site, texts[0])
    site.publish_model(run, seed=1)  # nothing can capture the first one again
    assert site.http.get(HERE, headers=IN_JSON).status_code == 200
    for ids in texts[1:4]:
        send(site, ids)
    assert site.http.get(f"/attention/tiny/{names[1]}", headers=IN_JSON).status_code == 200  # used now
    assert sorted(present(site)) == sorted(["0", *names[:4]])
    for ids in texts[4:6]:
        send(site, ids)
    assert sorted(present(site)) == sorted(["0", names[0], names[1], names[4], names[5]])
    assert tree_bytes(site.layout.attention) <= 5.4 * size


def test_patterns_of_heads_make_room_for_a_text_and_come_again(make_real) -> None:
    size = record_bytes(HEADS, BLOCK)
    site = make_real(quota_bytes=2 * patterns_bytes(sum(HEADS), 8, BLOCK) + int(2.5 * size))
    for seed, name in enumerate(("tiny", "other")):
        site.add_model(name, seed=seed)
    params = {"runs": "tiny,other", "view": "heads"}
    before = site.http.get("/compare", params=params).json()["heads"]
    assert len(list(site.layout.attention.rglob("*.npz"))) == 2
    for number in range(3):
        send(site, [number] * BLOCK)
    assert len(list(site.layout.attention.rglob("*.npz"))) < 2
    assert site.http.get("/compare", params=params).json()["heads"] == before


def test_a_checkpoint_that_is_replaced_before_its_capture_is_not_served_under_its_hash(make_real) -> None:
    site = make_real()
    site.add_model("other", seed=7)
    run = site.add_model("tiny")
    old = run.resolve("best").sha256
    busy = text_directory(site.layout, "other", tokens_id([1, 2]))
    with ThreadPoolExecutor(3) as pool:
        with text_lock(busy):
            first = pool.submit(site.http.post, "/attention", json={"run": "other", "tokens": [1, 2]})
            eventually(site.loaded_models)  # it waits for the lock, and the others for it
            fixed = pool.submit(site.http.get, HERE, params={"checkpoint": f"sha256={old}"}, headers=IN_JSON)
            best = pool.submit(site.http.get, HERE, headers=IN_JSON)
            new = site.publish_model(run, seed=1).sha256
        assert first.result().status_code == 201
        assert (fixed.result().status_code, fixed.result().json()["code"]) == (404, "checkpoint_not_found")
        assert (best.result().status_code, best.result().json()["sha256"]) == (200, new)
    assert site.http.get(HERE, params={"checkpoint": f"sha256={old}"}).status_code == 404


def test_what_was_captured_of_a_replaced_checkpoint_stays_under_its_hash(make_real) -> None:
    site = make_real()
    run = site.add_model("tiny")
    links = site.http.get(HERE, headers=IN_JSON).json()["links"]
    before = {name: site.http.get(links[name]) for name in ("self", "sheet", "weights", "statistics", "rollout")}
    site.publish_model(run, seed=1)
    after = {name: site.http.get(links[name]) for name in before}
    assert {name: reply.content for name, reply in after.items()} == {
        name: reply.content for name, reply in before.items()
    }
    assert all("immutable" in reply.headers["cache-control"] for reply in after.values())
    exact = site.http.get(f"{links['weights']}&format=npz")
    assert (exact.status_code, exact.json()["code"]) == (404, "checkpoint_not_found")
    assert site.http.get(f"{HERE}/weights").json()["layers"] != before["weights"].json()["layers"]
    assert not list(site.layout.attention.rglob(EXACT))


@pytest.mark.parametrize("part", ["", "/weights", "/statistics", "/rollout"])
def test_a_reply_is_known_by_its_etag_until_the_checkpoint_changes(make_real, part: str) -> None:
    site = make_real()
    run = site.add_model("tiny")
    first = site.http.get(HERE + part)
    known = {"If-None-Match": first.headers["etag"]}
    again = site.http.get(HERE + part, headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert "Accept" in again.headers["vary"]
    assert again.headers["cache-control"] == "private, no-cache"
    fixed = site.http.get(HERE + part, params={"checkpoint": f"sha256={run.resolve('best').sha256}"})
    assert "immutable" in fixed.headers["cache-control"]
    refused = site.http.get(HERE + part, headers={"Accept": "audio/ogg"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    site.publish_model(run, seed=1)
    changed = site.http.get(HERE + part, headers=known)
    assert (changed.status_code, changed.headers["etag"] != first.headers["etag"]) == (200, True)


def test_a_packed_reply_has_an_etag_of_its_own(make_real) -> None:
    site = make_real()
    site.add_model("tiny")
    plain, packed = (
        site.http.get(f"{HERE}/weights", headers={"Accept-Encoding": kind}) for kind in ("identity", "gzip")
    )
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept, Accept-Encoding"
    assert (plain.content, plain.headers["etag"] != packed.headers["etag"]) == (packed.content, True)


def test_deleting_a_text_ends_its_exact_weights_and_those_who_ask_at_once_share_one_record(make_real) -> None:
    site = make_real()
    site.add_model("tiny")
    address = f"/attention/tiny/{tokens_id([5] * 40)}"
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: send(site, [5] * 40), range(8)))
        assert len({reply.json()["sha256"] for reply in replies}) == 1
        asked = [pool.submit(site.http.get, f"{address}/weights", params={"format": "npz"}) for _ in range(6)]
        assert site.http.delete(address).status_code == 204
        statuses = {future.result().status_code for future in asked}
    assert statuses <= {200, 404}
    assert site.http.get("/attention/tiny").json()["data"] == []
    assert not text_directory(site.layout, "tiny", tokens_id([5] * 40)).exists()
    assert size_of(site.layout.attention_of("tiny")) == 0
