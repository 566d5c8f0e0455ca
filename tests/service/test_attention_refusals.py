"""Every refusal of attention, through a service whose inference application and models are real."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis

from model_core.storage.checkpoints import BEST
from model_core.storage.dataset import SPLITS
from tests.service.conftest import TREE
from tests.service.real_host import BLOCK, N_VOCAB, RealSite

HERE = "/attention/tiny/0"
TEXT = "One day a cat saw a ball."
UNKNOWN = "t_0123456789abcdef"
MOST = 1182  # tokens with at most 2^30 weights under 768 heads
IN_JSON = {"Content-Type": "application/json"}
LONG = "The cat saw a red ball. " * 40


@pytest.fixture(scope="module")
def real(_shared_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSite]:
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    site = RealSite(tmp_path_factory.mktemp("refusals") / "data", _shared_redis.url)
    add_runs(site)
    yield site
    site.close()


def add_runs(site: RealSite) -> None:
    """One run for each way in which something is missing."""
    site.add_model("tiny", n_head_list=[8, 2])
    site.add_model("other", seed=1)
    site.add_model("wide", n_layer=12, n_embd=64, n_head_list=[64] * 12, block_size=2048)
    site.make_run("bare", checkpoint=None)
    file = site.add_model("damaged").path / BEST
    file.write_bytes(file.read_bytes()[:-100])
    site.make_run("lonely", data={**TREE["data"], "dataset": "nowhere"})
    short = site.add_texts("short")
    for split in SPLITS:
        np.save(short.split(split), np.arange(20, dtype=np.uint16))
    site.add_model("brief", dataset="short")
    stepped = site.make_run("stepped", checkpoint=None)
    for step in range(22):
        stepped.publish(
            f"model_{step:05d}.pt", lambda file: file.write(b"1"), attempt=1, step=step, full=False, loss=1, val_loss=1
        )
    vast = {"n_layer": 32, "n_embd": 1024, "n_head_list": [1024] * 32, "vocab_size": 50_257, "block_size": 256}
    site.make_run("vast", model={**TREE["model"], **vast})


def get(path: str, **params: str) -> tuple[str, str, dict[str, str]]:
    return "GET", path, params


def send(path: str = "/attention", **body: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", path, body


Asked = tuple[str, str, dict[str, Any]]
Row = tuple[Asked, tuple[int, str], str | None, list[Any] | None]  # request, status and code, pointer, nearest
INVALID = (422, "invalid_parameter")
PARTS: list[Row] = [
    (get(HERE, layer="99"), INVALID, "/layer", [1]),
    (get(HERE, layer="0", head="12"), INVALID, "/head", [7]),
    (get(f"{HERE}/layer99.png"), INVALID, "/layer", [1]),
    (get(f"{HERE}/weights", layer="0,1", head="3"), INVALID, "/head", [1]),
    (get(f"{HERE}/statistics", layer="99"), INVALID, "/layer", [1]),
    (get(f"{HERE}/rollout", layer="99"), INVALID, "/layer", [1]),
    (get("/runs/tiny/heads", layer="99"), INVALID, "/layer", [1]),
    (get("/runs/tiny/heads", layer="0,1", head="3"), INVALID, "/head", [1]),
    (send(run="tiny", text=TEXT, layers=[0, 99]), INVALID, "/layers/1", [1]),
    (send(run="tiny", text=TEXT, heads=[0, 3]), INVALID, "/heads/1", [1]),
]
WORDS: list[Row] = [
    (get("/runs/tiny/heads", metric="previuos"), INVALID, "/metric/0", ["previous"]),
    (get("/runs/tiny/heads", scale="wide"), INVALID, "/scale", ["auto", "0,1"]),
    (get("/runs/tiny/heads", head=""), INVALID, "/head/0", []),
    (get(f"{HERE}/statistics", sort="previos"), INVALID, "/sort", ["previous"]),
    (get(HERE, cmap="virids"), INVALID, "/cmap", ["viridis"]),
    (get(HERE, scale="autom"), INVALID, "/scale", ["auto"]),
    (get("/compare", runs="tiny,other", view="head"), INVALID, "/view", ["heads"]),
    (get(f"{HERE}/weights", format="sprase"), INVALID, "/format", ["sparse"]),
    (send("/runs/tiny/ablations", baseline="means"), INVALID, "/baseline", ["mean"]),
]
RANGES: list[Row] = [
    (get(f"{HERE}/weights", tokens="9:3"), INVALID, "/tokens", None),
    (get(f"{HERE}/statistics", tokens="0:999"), INVALID, "/tokens", None),
    (get(HERE, highlight="x"), INVALID, "/highlight", None),
]
TEXTS: list[Row] = [
    (send(run="tiny"), INVALID, "/text", []),
    (send(run="tiny", text=TEXT, tokens=[1]), INVALID, "/tokens", []),
    (send(run="tiny", text=""), INVALID, "/text", []),
    (send(run="tiny", tokens=[1, N_VOCAB, 2]), INVALID, "/tokens/1", None),
    (send(run="tiny", text="a \ud83d"), INVALID, "/text", []),
    (send(run="tiny", tokens=[1] * 50_000), INVALID, "/tokens", []),
]
SIZES: list[Row] = [
    (send(run="tiny", text=LONG), (422, "prompt_too_long"), "/text", [BLOCK]),
    (send(run="tiny", tokens=[1] * (BLOCK + 1)), (422, "prompt_too_long"), "/tokens", [BLOCK]),
    (send(run="wide", tokens=[1] * 2000), (422, "attention_too_large"), "/max_tokens", [MOST]),
    (send(run="wide", text="cat " * 1500, max_tokens=1500), (422, "attention_too_large"), "/max_tokens", [MOST]),
    (send("/runs/vast/distributions", examples=10), (422, "attention_too_large"), "/examples", None),
    (get("/attention/stepped/0/animation.png"), (422, "attention_too_large"), "/checkpoints", None),
]
MISSING: list[Row] = [
    (get(f"/attention/tiny/{UNKNOWN}"), (404, "example_not_found"), None, None),
    (get("/attention/tiny/9999"), (404, "example_not_found"), None, None),
    (get("/runs/tiny/ablations/none"), (404, "result_not_found"), None, None),
    (get("/runs/tiny/distributions/..%2f..%2fprobes"), (404, "not_found"), None, None),
    (get("/runs/tiny/distributions/none"), (404, "result_not_found"), None, None),
    (get("/attention/bare/0"), (409, "checkpoint_not_ready"), None, None),
    (send(run="bare", text=TEXT), (409, "checkpoint_not_ready"), None, None),
    (get(f"{HERE}/animation.png"), (409, "too_few_checkpoints"), None, None),
    (get("/attention/tiny/probe/animation.gif"), (409, "too_few_checkpoints"), None, None),
    (get("/attention/lonely/0"), (409, "dataset_not_ready"), None, None),
    (get("/runs/lonely/heads", checkpoint="best"), (409, "dataset_not_ready"), None, None),
    (send("/runs/lonely/ablations"), (409, "dataset_not_ready"), None, None),
    (send("/runs/lonely/distributions"), (409, "dataset_not_ready"), None, None),
    (get("/attention/damaged/0"), (409, "checkpoint_damaged"), None, None),
    (get("/runs/damaged/heads", checkpoint="best"), (409, "checkpoint_damaged"), None, None),
]
COMPARED: list[Row] = [
    (get("/compare", runs="tiny"), INVALID, "/runs", []),
    (get("/compare", runs="a,b,c,d,e,f,g,h,i"), INVALID, "/runs", []),
    (get("/compare", runs="tiny,tiny"), INVALID, "/runs", []),
    (get("/compare", runs="tiny,other", checkpoints="best"), INVALID, "/checkpoints", []),
]
SPLITS_TOO_SHORT: list[Row] = [
    (send("/runs/brief/ablations"), (422, "invalid_data"), None, None),
    (get("/runs/brief/heads", checkpoint="best"), (422, "invalid_data"), None, None),
    (get("/compare", runs="brief,other", view="heads"), (422, "invalid_data"), None, None),
]


@pytest.mark.parametrize(
    ("asked", "answer", "pointer", "nearest"),
    [*PARTS, *WORDS, *RANGES, *TEXTS, *SIZES, *MISSING, *COMPARED, *SPLITS_TOO_SHORT],
    ids=lambda value: f"{value[1]} {str(value[2])[:40]}" if isinstance(value, tuple) and len(value) == 3 else "",
)
def test_a_refusal_says_what_would_be_right(
    real: RealSite, asked: Asked, answer: tuple[int, str], pointer: str | None, nearest: list[Any] | None
) -> None:
    method, path, fields = asked
    sent = {"params": fields} if method == "GET" else {"content": json.dumps(fields), "headers": IN_JSON}
    reply = real.http.request(method, path, **sent)
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == answer, problem
    assert [error["pointer"] for error in problem["errors"]] == ([] if pointer is None else [pointer])
    assert nearest is None or problem["errors"][0]["nearest"] == nearest


def test_what_fits_is_named_and_fits(real: RealSite) -> None:
    refused = send("/runs/vast/distributions", examples=10)
    [problem] = real.http.post(refused[1], json=refused[2]).json()["errors"]
    [most] = problem["nearest"]
    assert real.http.post(refused[1], json={"examples": most}).status_code == 202
    assert real.http.post(refused[1], json={"examples": most + 1}).status_code == 422


def test_a_body_over_the_limit_is_not_read(real: RealSite) -> None:
    assert real.http.post("/attention", content=b"a" * (1 << 21), headers=IN_JSON).status_code == 413


def test_after_all_refusals_nothing_was_captured_of_what_was_refused(real: RealSite) -> None:
    sent = real.http.post("/attention", json={"run": "other", "text": TEXT})
    assert sent.status_code == 201
    assert [text["id"] for text in real.http.get("/attention/other").json()["data"]] == [sent.json()["id"]]
    for run in ("wide", "damaged", "lonely", "stepped"):
        assert real.http.get(f"/attention/{run}").json()["data"] == []
