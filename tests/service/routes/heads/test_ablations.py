"""Ablations over HTTP: cost, job, result as JSON, CSV and PNG, and deletion."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.heads.ablation_record import (
    AblationOptions,
    Measurement,
    Part,
    build_result,
    parts,
    read_sample,
    write_result,
)
from model_core.storage.dataset import dataset_of
from model_core.storage.events import EventWriter
from model_core.storage.files import now, write_json
from model_core.storage.run import Run
from service.admission import ablation_file

PLACE = "/runs/tiny/ablations"
SMALL = {"tokens": 128, "draws": 2}


@pytest.fixture
def run(site: Any) -> Run:
    made: Run = site.make_run("tiny")
    return made


def write_ablation(site: Any, run: Run, **options: Any) -> str:
    """The result of an ablation as a job leaves it, of random numbers; returns its name."""
    chosen = AblationOptions.model_validate({**SMALL, **options})
    config, info = run.config(), run.resolve("best")
    dataset = dataset_of(config, site.layout)
    sample = read_sample(dataset, chosen, block_size=config.model.block_size, vocab_size=config.model.vocab_size)
    path, rng = ablation_file(site.layout, run, info, chosen), np.random.default_rng(0)
    found = [
        Measurement(part, 0, tuple(rng.normal(0.1, 0.2, sample.windows)), (0.5,) * sample.windows, 0.25)
        for part in (Part("clean"), *parts(config.model.heads, chosen))
    ]
    facts = {
        "name": path.stem, "run": run.name, "checkpoint": info.file, "step": info.step, "sha256": info.sha256,
        "dataset": dataset.name, "device": "cpu", "created_at": now(),
    }  # fmt: skip
    shape = {"heads": config.model.heads, "head_dims": config.model.head_dims}
    write_result(path, build_result(found, **shape, options=chosen, sample=sample, facts=facts))
    return path.stem


def test_a_request_is_a_job_whose_program_gets_the_options_and_equal_ones_share_it(site: Any, run: Run) -> None:
    first = site.http.post(PLACE, json=SMALL)
    again = site.http.post(PLACE, json=SMALL)
    other = site.http.post(PLACE, json={**SMALL, "baseline": "zero"})
    direct = {"experiment_name": "tiny", "job": {"kind": "ablate", "options": {**SMALL, "split": "val"}}}
    by_hand = site.http.post("/jobs", json=direct)
    assert [reply.status_code for reply in (first, again, other, by_hand)] == [202, 200, 202, 202]
    assert (first.json()["id"], first.json()["kind"]) == (again.json()["id"], "ablate")
    assert len({reply.json()["id"] for reply in (first, other, by_hand)}) == 3
    claims = []
    for _ in range(3):
        claims.append(site.claim())
        site.finish(claims[-1])
    told = [claim.config["job"]["options"] for claim in claims]
    assert [(options["baseline"], options["split"]) for options in told] == [
        ("mean", "test"), ("zero", "test"), ("mean", "val"),
    ]  # fmt: skip
    assert all(claim.config["experiment_name"] == "tiny" for claim in claims)


def test_a_finished_ablation_is_answered_at_once_and_in_every_form(site: Any, run: Run) -> None:
    name = write_ablation(site, run)
    made = site.http.post(PLACE, json=SMALL)
    assert (made.status_code, made.headers["location"]) == (200, f"{PLACE}/{name}")
    detail = site.http.get(f"{PLACE}/{name}").json()
    assert detail == made.json()
    config = run.config().model
    assert [head["layer"] for head in detail["heads"]] == [
        layer for layer, count in enumerate(config.heads) for _ in range(count)
    ]
    listed = site.http.get(PLACE).json()["data"]
    assert [(one["name"], one["loss"]) for one in listed] == [(name, detail["loss"])]

    table = site.http.get(f"{PLACE}/{name}", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == sum(config.heads) + config.n_layer
    assert float(rows[0]["change"]) == detail["heads"][0]["change"]
    picture = site.http.get(detail["links"]["png"])
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.format == "PNG"
    known = site.http.get(detail["links"]["png"], headers={"If-None-Match": picture.headers["etag"]})
    assert known.status_code == 304
    assert site.http.get(f"{PLACE}/{name}", headers={"Accept": "audio/ogg"}).status_code == 406


def test_a_cost_is_quoted_from_the_speed_of_the_run_and_submits_nothing(site: Any, run: Run) -> None:
    unknown = site.http.post(PLACE, json=SMALL, params={"validate_only": "true"})
    events = EventWriter(run.events, 1)
    events.append("start", used={"device": "cpu"})
    for step in range(3):
        events.append("step", step=step, tokens_per_s=1000.0)
    events.close()
    known = site.http.post(PLACE, json=SMALL, params={"validate_only": "true"}).json()
    assert (unknown.status_code, unknown.json()["seconds"], unknown.json()["based_on"]) == (200, None, None)
    assert known["based_on"] == {"run": "tiny", "device": "cpu", "tokens_per_s": 1000.0}
    assert known["passes"] == unknown.json()["passes"]
    low, high = known["seconds"]
    assert low < known["passes"] * known["tokens"] / 1000 * 0.33 < high <= 2 * low
    assert site.http.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("validate_only", ["true", "false"])
def test_a_key_of_more_than_255_characters_is_refused_also_where_nothing_is_submitted(
    site: Any, run: Run, validate_only: str
) -> None:
    long = {"Idempotency-Key": "k" * 256}
    reply = site.http.post(PLACE, json=SMALL, params={"validate_only": validate_only}, headers=long)
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in problem["errors"]] == ["/Idempotency-Key"]
    assert site.http.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("options", "code", "pointer", "nearest"),
    [
        ({"baseline": "means"}, "invalid_parameter", "/baseline", ["mean"]),
        ({"split": "tests"}, "invalid_parameter", "/split", ["test"]),
        ({"draws": 1}, "invalid_parameter", "/draws", []),
        ({"tokens": True}, "invalid_parameter", "/tokens", []),
        ({"draw": 64}, "invalid_parameter", "/draw", ["draws"]),
        ({"baseline": "resample", "draws": 64}, "invalid_data", None, None),
    ],
    ids=["baseline", "split", "draws", "tokens", "unknown-key", "short-split"],
)
def test_wild_options_are_refused_with_what_would_be_right(
    site: Any, run: Run, options: Any, code: str, pointer: str | None, nearest: Any
) -> None:
    reply = site.http.post(PLACE, json=options)
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, code)
    found = [(one["pointer"], one["nearest"]) for one in problem["errors"] or []]
    assert found == ([] if pointer is None else [(pointer, nearest)])


def test_options_of_another_kind_and_wrong_ones_have_the_pointer_of_the_job(site: Any, run: Run) -> None:
    tree = {"experiment_name": "tiny", "job": {"kind": "ablate", "options": {"baseline": "zeros"}}}
    wrong = site.http.post("/jobs", json=tree).json()["errors"]
    assert [(one["pointer"], one["nearest"]) for one in wrong] == [("/job/options/baseline", ["zero"])]
    tree = {"experiment_name": "tiny", "job": {"kind": "export", "options": {}}}
    assert [one["pointer"] for one in site.http.post("/jobs", json=tree).json()["errors"]] == ["/job/options"]


def test_what_there_is_not_has_its_code(site: Any, run: Run) -> None:
    site.make_run("empty", checkpoint=None)
    replies = {
        "result_not_found": site.http.get(f"{PLACE}/model_best-00000000-00000000"),
        "run_not_found": site.http.get("/runs/nobody/ablations"),
        "checkpoint_not_ready": site.http.post("/runs/empty/ablations"),
        "checkpoint_not_found": site.http.post(PLACE, json={"checkpoint": "step=77"}),
    }
    assert {code: reply.json()["code"] for code, reply in replies.items()} == {code: code for code in replies}
    assert [reply.status_code for reply in replies.values()] == [404, 404, 409, 404]
    dataset_of(run.config(), site.layout).test.unlink()
    assert site.http.post(PLACE).json()["code"] == "dataset_not_ready"


def test_a_result_goes_with_the_job_that_made_it_or_with_its_run(site: Any, run: Run) -> None:
    job = site.http.post(PLACE, json=SMALL).json()
    claim = site.claim()
    mine, others = write_ablation(site, run), write_ablation(site, run, split="val")
    record = site.layout.jobs / job["id"]
    write_json(record / "outcome.json", {"attempt": claim.attempt, "outcome": "succeeded", "name": mine})
    site.finish(claim)
    assert site.http.delete(f"/jobs/{job['id']}", params={"artifacts": "true"}).status_code == 204
    assert [one["name"] for one in site.http.get(PLACE).json()["data"]] == [others]
    assert not record.exists()
    assert site.http.delete("/runs/tiny").status_code == 204
    assert not site.layout.attention_of("tiny").exists()


def test_no_value_of_the_options_is_lost_in_the_job_that_waits_for_its_run(site: Any) -> None:
    training = site.submit("later")
    options = {"checkpoint": "final", "baseline": "zero", **SMALL}
    tree = {"experiment_name": "later", "job": {"kind": "ablate", "options": options, "depends_on": [training["id"]]}}
    assert site.http.post("/jobs", json=tree).status_code == 202
    site.finish(site.claim())
    assert json.loads(json.dumps(site.claim().config["job"]["options"])) == {**options, "split": "test"}
