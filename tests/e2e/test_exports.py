"""End-to-end test of an export: from a trained run to downloaded tensors, and back to a run."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_trained_run_is_exported_once_and_its_tensors_are_served(service, tiny) -> None:
    training = service.submit(tiny("shown", evaluation={"sample_num": 0}, execution={"test": False}))
    waits = {"kind": "export", "depends_on": [training["id"]]}
    job = service.submit({"experiment_name": "shown", "job": waits})
    done = service.finished(job["id"])
    assert (done["run"], done["progress"]["unit"], done["progress"]["step"]) == ("shown", "files", None)
    assert done["progress"]["done"] == done["progress"]["of"] > 4
    assert [(attempt["run"], attempt["step"]) for attempt in done["attempts"]] == [("shown", None)]

    there = service.client.post("/runs/shown/exports")
    assert (there.status_code, there.json()["checkpoint"]) == (200, "model_best.pt")
    tensors = load(service.client.get(there.json()["links"]["safetensors"]).content)
    assert tensors["transformer.wte.weight"].shape == (384, 16)
    folder = service.data / "exports" / "shown" / there.json()["name"]
    assert folder.is_dir()
    assert service.client.delete(f"/jobs/{job['id']}?artifacts=true").status_code == 204
    assert not folder.exists()
    assert service.client.get("/runs/shown/exports").json()["data"] == []


def test_an_export_comes_back_as_a_run_and_both_can_be_deleted(service, tiny) -> None:
    training = service.submit(tiny("out", evaluation={"sample_num": 0}, execution={"test": False}))
    waits = {"kind": "export", "depends_on": [training["id"]]}
    service.finished(service.submit({"experiment_name": "out", "job": waits})["id"])
    [export] = service.client.get("/runs/out/exports").json()["data"]
    archive = shutil.make_archive(str(service.data / "sent"), "zip", service.data / "exports" / "out" / export["name"])
    with Path(archive).open("rb") as file:
        sent = service.client.post("/runs", data={"name": "back"}, files={"files": ("model.zip", file)})
    done = service.finished(sent.json()["id"])
    assert (sent.status_code, done["kind"], done["progress"]["unit"]) == (202, "import", "tensors")
    assert list((service.data / "uploads" / ".models").iterdir()) == []
    texts = [
        service.client.post("/generate", json={"run": run, "prompt": "The cat", "seed": 1, "temperature": 0}).json()
        for run in ("out", "back")
    ]
    assert texts[0]["choices"][0]["tokens"] == texts[1]["choices"][0]["tokens"]
    assert service.client.get("/runs/back").json()["job"] == done["id"]
    for run in ("out", "back"):
        assert service.client.delete(f"/runs/{run}").status_code == 204
        assert not (service.data / "exp" / run).exists()
