"""Distributions over HTTP: a test without pictures measures one, and its result is read as JSON, CSV and PNG."""

import csv
import io
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.heads.distribution import (
    TEXT_METRICS,
    Distribution,
    DistributionAccumulator,
    TextSample,
)
from model_core.attention.heads.distribution_record import (
    DistributionRecord,
    distribution_directory,
    distribution_key,
    write_distribution,
)
from model_core.config_loader import parse_config
from model_core.errors import ResultNotFound
from model_core.storage.dataset import dataset_of
from model_core.storage.run import Run
from service import distributions
from service.head_results import CSV, PNG
from service.protocol.parsing import JSON

PLACE = "/runs/tiny/distributions"


@pytest.fixture
def run(site: Any) -> Run:
    made: Run = site.make_run("tiny")
    return made


def measured(sample: TextSample, heads: tuple[int, ...]) -> Distribution:
    """Random attention on every text."""
    rng, accumulator = np.random.default_rng(0), DistributionAccumulator(sample, heads)
    for texts in sample.batches():
        for layer, n_head in enumerate(heads):
            tokens = len(sample.texts[texts[0]])
            weights = np.tril(rng.random((len(texts), n_head, tokens, tokens)) ** 4 + 1e-6)  # (B, H, T, T)
            part = accumulator.layer(texts, layer)
            part.add(0, (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))
            accumulator.add(texts, layer, part)
    return accumulator.finish()


@pytest.fixture
def record(site: Any, run: Run) -> DistributionRecord:
    """The result for four examples of at most 16 tokens, of texts that are made up."""
    config, info = run.config(), run.resolve("best")
    heads = config.model.heads
    key = distribution_key(dataset_of(config, site.layout), 4, 16)
    texts = np.random.default_rng(1).integers(0, 4, (4, 16)).tolist()
    sample = TextSample.of([0, 2, 5, 7], texts, 16)
    described = {
        "run": "tiny", "checkpoint": info.file, "step": info.step, "sha256": info.sha256, "dataset": "words",
        "heads": list(heads), "head_dims": list(config.model.head_dims), "sample": {"max_tokens": 16, "too_short": 0},
    }  # fmt: skip
    directory = distribution_directory(site.layout, "tiny", info, key)
    return write_distribution(directory, measured(sample, heads), sample, described, lambda ids: [f"t{n}" for n in ids])


def places(record: DistributionRecord) -> list[tuple[int, int]]:
    return [(layer, head) for layer, count in enumerate(record.heads) for head in range(count)]


def test_a_request_is_a_test_without_pictures(site: Any, run: Run) -> None:
    asked = site.http.post(PLACE, json={"examples": 4, "max_tokens": 16})
    job = asked.json()
    assert (asked.status_code, asked.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["run"]) == ("test", "tiny")
    claim = site.claim()
    testing = parse_config({k: v for k, v in claim.config.items() if k != "job"}).config.testing
    assert (testing.num_test_samples, testing.num_statistics_samples, testing.test_sample_length) == (0, 4, 16)
    assert testing.checkpoint == "best"
    assert site.http.get(PLACE).json()["data"] == []


def test_a_result_that_is_there_is_the_answer(site: Any, record: DistributionRecord) -> None:
    reply = site.http.post(PLACE, json={"examples": 4, "max_tokens": 16})
    here = f"{PLACE}/{record.name}"
    assert (reply.status_code, reply.headers["location"]) == (200, here)
    assert reply.json() == site.http.get(PLACE).json()["data"][0]
    assert reply.json()["links"] == {
        "self": here, "png": f"{here}?format=png", "csv": f"{here}?format=csv", "run": "/runs/tiny",
    }  # fmt: skip
    assert site.http.get("/jobs").json()["data"] == []
    assert site.http.post(PLACE, json={"examples": 5, "max_tokens": 16}).status_code == 202


def test_another_checkpoint_of_that_name_has_another_result(site: Any, run: Run, record: DistributionRecord) -> None:
    site.publish(run, b"other weights")
    assert site.http.post(PLACE, json={"examples": 4, "max_tokens": 16}).status_code == 202
    assert [found["name"] for found in site.http.get(PLACE).json()["data"]] == [record.name]


def test_json_has_every_head_with_its_nulls_beside_it(site: Any, record: DistributionRecord) -> None:
    found = site.http.get(f"{PLACE}/{record.name}").json()
    assert (found["object"], found["metrics"]) == ("distribution", list(TEXT_METRICS))
    assert [(head["layer"], head["head"]) for head in found["heads"]] == places(record)
    head = found["heads"][0]
    assert head["metrics"]["previous"] == record.quantiles(["previous"], [(0, 0)])[0]["previous"]
    assert head["metrics"]["sink_norm"] is None
    assert sum(entry["share"] for entry in head["distances"]) == pytest.approx(1, abs=1e-4)
    assert found["even"]["sink"] == pytest.approx(record.manifest["even"]["sink"])
    assert head["examples"] == []


def test_a_metric_comes_with_the_examples_of_its_deciles(site: Any, record: DistributionRecord) -> None:
    found = site.http.get(f"{PLACE}/{record.name}", params={"metric": "previous", "layer": 1, "head": 0}).json()
    (head,) = found["heads"]
    assert (head["layer"], head["head"], list(head["metrics"])) == (1, 0, ["previous"])
    deciles = [entry for entry in head["examples"] if entry["decile"] is not None]
    assert [entry["decile"] for entry in deciles] == list(range(11))
    assert deciles[-1]["value"] == pytest.approx(head["metrics"]["previous"]["deciles"][-1])
    highest = [entry for entry in head["examples"] if entry["decile"] is None]
    assert sorted({int(entry["id"]) for entry in highest}) == [0, 2, 5, 7]
    sha256 = record.manifest["sha256"]
    assert highest[0]["links"]["attention"] == (
        f"/attention/tiny/{highest[0]['id']}?checkpoint=sha256={sha256}&max_tokens=16"
    )


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        (None, "layer head metric mean sd d0 d10 d20 d30 d40 d50 d60 d70 d80 d90 d100"),
        ("distances", "layer head first last share even"),
        ("key_tokens", "layer head token text lift count"),
        ("query_tokens", "layer head token text share even lift count"),
    ],
)
def test_csv_has_a_row_for_each_entry(site: Any, record: DistributionRecord, view: str | None, columns: str) -> None:
    query = {"format": "csv", **({} if view is None else {"view": view})}
    reply = site.http.get(f"{PLACE}/{record.name}", params=query)
    assert reply.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(reply.text))
    assert header == columns.split()
    assert {(int(layer), int(head)) for layer, head, *_ in rows} == set(places(record))


@pytest.mark.parametrize("query", [{}, {"view": "values", "metric": "sink"}, {"metric": "sink_norm", "layer": 0}])
def test_png_is_a_picture(site: Any, record: DistributionRecord, query: dict[str, Any]) -> None:
    reply = site.http.get(f"{PLACE}/{record.name}", params=query, headers={"Accept": "image/png"})
    picture = Image.open(io.BytesIO(reply.content))
    assert (reply.headers["content-type"], picture.mode) == ("image/png", "P")
    assert min(picture.size) > 100


def test_a_reply_that_the_client_has_is_not_sent_again(site: Any, record: DistributionRecord) -> None:
    address = f"{PLACE}/{record.name}"
    tags = {
        site.http.get(address, params=query).headers["etag"]
        for query in ({}, {"layer": 0}, {"format": "csv"}, {"format": "csv", "view": "distances"}, {"format": "png"})
    }
    assert len(tags) == 5
    again = site.http.get(address, headers={"If-None-Match": site.http.get(address).headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def refused(reply: Any) -> tuple[int, str, list[tuple[str, list[Any]]]]:
    problem = reply.json()
    return reply.status_code, problem["code"], [(error["pointer"], error["nearest"]) for error in problem["errors"]]


def test_what_is_not_there_is_refused(site: Any, record: DistributionRecord) -> None:
    address, layers = f"{PLACE}/{record.name}", len(record.heads)
    get = site.http.get
    assert refused(get(f"{PLACE}/model_best-00000000-00000000")) == (404, "result_not_found", [])
    assert refused(get(f"{PLACE}/..%2F..%2Fexp")) == (404, "not_found", [])
    assert refused(get("/runs/nowhere/distributions")) == (404, "run_not_found", [])
    assert refused(get(address, params={"layer": 99})) == (422, "invalid_parameter", [("/layer", [layers - 1])])
    last = record.heads[0] - 1
    assert refused(get(address, params={"layer": 0, "head": 12})) == (422, "invalid_parameter", [("/head", [last])])
    (status, code, [(pointer, nearest)]) = refused(get(address, params={"metric": "previuos"}))
    assert (status, code, pointer, "previous" in nearest) == (422, "invalid_parameter", "/metric", True)


@pytest.mark.parametrize(
    ("media_type", "query"),
    [(JSON, {}), (JSON, {"metric": "previous"}), (CSV, {"view": "key_tokens"}), (CSV, {}), (PNG, {})],
    ids=["json", "examples", "tokens", "csv", "png"],
)
def test_a_distribution_deleted_while_it_is_read_is_not_found(
    site: Any, record: DistributionRecord, media_type: str, query: dict[str, Any]
) -> None:
    found = distributions.find(site.layout, "tiny", record.name)
    shutil.rmtree(record.path)
    with pytest.raises(ResultNotFound):
        distributions.render(found, distributions.DistributionQuery(**query), media_type)


def test_what_cannot_be_measured_is_refused(site: Any, run: Run) -> None:
    site.make_run("empty", checkpoint=None)
    post = site.http.post
    assert refused(post("/runs/nowhere/distributions"))[:2] == (404, "run_not_found")
    assert refused(post("/runs/empty/distributions"))[:2] == (409, "checkpoint_not_ready")
    assert refused(post(PLACE, json={"checkpoint": "step=7"}))[:2] == (404, "checkpoint_not_found")
    wrong = refused(post(PLACE, json={"examples": 0, "max_tokens": "x", "heads": 1}))
    assert (wrong[0], {pointer for pointer, _ in wrong[2]}) == (422, {"/examples", "/max_tokens", "/heads"})
    (dataset_of(run.config(), site.layout).directory / "test_examples.json").unlink()
    assert refused(post(PLACE))[:2] == (409, "dataset_not_ready")
