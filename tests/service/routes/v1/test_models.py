"""Checkpoints as OpenAI's models."""

import pytest

from service.routes.v1.models import OpenAIModel


def test_each_run_with_a_checkpoint_is_a_model(site) -> None:
    assert site.http.get("/v1/models").json() == {"object": "list", "data": []}
    site.make_run("b")
    site.make_run("a")
    site.make_run("new", checkpoint=None)
    page = site.http.get("/v1/models").json()
    assert [(model["id"], model["object"], model["owned_by"]) for model in page["data"]] == [
        ("a", "model", "headcount"),
        ("b", "model", "headcount"),
    ]
    assert page["data"][0] == site.http.get("/v1/models/a").json()


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("tiny", "model_best.pt"),
        ("tiny:best", "model_best.pt"),
        ("tiny:step=250", "model_00250.pt"),
        ("tiny%3Astep%3D250", "model_00250.pt"),
        ("tiny:model_00250.pt", "model_00250.pt"),
        ("tiny:latest", "model_00250.pt"),
    ],
)
def test_an_id_names_a_checkpoint(site, model: str, file: str) -> None:
    run = site.make_run("tiny")
    run.publish("model_00250.pt", lambda f: f.write(b"w"), attempt=1, step=250, full=True, loss=1.0, val_loss=None)
    found = OpenAIModel.model_validate(site.http.get(f"/v1/models/{model}").json())
    info = run.resolve(file)
    assert (found.checkpoint, found.step, found.sha256) == (file, info.step, info.sha256)
    assert (found.max_model_len, found.created > 1.7e9) == (64, True)


@pytest.mark.parametrize("model", ["other", "tiny:step=7", "a/b", "a:b:c", "..%2Fx", "tiny:"])
def test_an_unknown_id_is_not_found(site, model: str) -> None:
    site.make_run("tiny")
    reply = site.http.get(f"/v1/models/{model}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_a_run_without_a_best_checkpoint_warns(site) -> None:
    run = site.make_run("tiny", checkpoint=None)
    assert site.http.get("/v1/models/tiny").json()["error"]["code"] == "checkpoint_not_ready"
    run.publish("model_final.pt", lambda f: f.write(b"w"), attempt=1, step=9, full=False, loss=1.0, val_loss=None)
    reply = site.http.get("/v1/models/tiny")
    assert (reply.json()["checkpoint"], "headcount-warning" in reply.headers) == ("model_final.pt", True)
