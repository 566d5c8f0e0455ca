"""End-to-end test of an export: from a trained run to downloaded tensors."""

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
