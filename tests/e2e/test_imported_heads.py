"""End-to-end test of the heads of an imported run, which has no events: an inference process measures them once."""

import concurrent.futures
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_core.attention.heads.checkpoint_probe import choose_probe
from model_core.attention.heads.probe import run_probe
from model_core.checkpoint import load_model
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def imported(service, tiny) -> Run:
    """The export of a trained run, imported under another name; there is no dataset of that name."""
    training = service.submit(tiny("told", execution={"test": False}))
    export = {"kind": "export", "depends_on": [training["id"]]}
    service.finished(service.submit({"experiment_name": "told", "job": export})["id"])
    [made] = service.client.get("/runs/told/exports").json()["data"]
    folder = service.data / "exports" / "told" / made["name"]
    with Path(shutil.make_archive(str(service.data / "told"), "zip", folder)).open("rb") as file:
        sent = service.client.post("/runs", data={"name": "untold"}, files={"files": ("model.zip", file)})
    service.finished(sent.json()["id"])
    return Run.open(service.data / "exp" / "untold")


def test_the_heads_of_an_imported_run_are_measured_once(service, tiny, imported: Run) -> None:
    heads = "/runs/untold/heads"
    assert service.client.get(heads).json()["reason"] == "no_events"

    lacking = service.client.get(heads, params={"checkpoint": "best"})
    assert (lacking.status_code, lacking.json()["code"]) == (409, "dataset_not_ready")
    asked = lacking.json()["request"]
    assert (asked["method"], asked["path"], asked["body"]["name"]) == ("POST", "/datasets", "untold")

    tokenizer = tiny("told")["data"]["tokenizer"]
    body = {**asked["body"], "source": "file:uploads/text.txt", "tokenizer": tokenizer}
    service.finished(service.client.post("/datasets", json=body).json()["id"])
    with concurrent.futures.ThreadPoolExecutor() as pool:  # one waits for the other
        first, second = pool.map(lambda _: service.client.get(heads, params={"checkpoint": "best"}), range(2))
    assert (first.status_code, first.json()) == (200, second.json())

    layout, sha256 = Layout.under(service.data), imported.resolve("best").sha256
    loaded = load_model(imported, "best")
    probe = choose_probe(dataset_of(loaded.config, layout), loaded.config.model)
    [file] = (layout.attention_of("untold") / "probes").glob("*.json")
    assert file.name == f"{sha256[:8]}-{probe.sha256[:8]}.json"
    stored = json.loads(file.read_text())
    assert (stored["run"], stored["sha256"], stored["probe"]["sha256"]) == ("untold", sha256, probe.sha256)
    measured = run_probe(loaded.model, probe).values
    for layer in first.json()["layers"]:
        for name, rows in layer["values"].items():
            expected = np.array(measured[name][layer["layer"]], float)  # (H,)
            np.testing.assert_allclose(np.array(rows, float)[:, 0], expected, rtol=2e-3)

    written = file.stat().st_mtime_ns
    assert service.client.get(heads, params={"checkpoint": "best"}).json() == first.json()
    assert (file.stat().st_mtime_ns, len(list(file.parent.iterdir()))) == (written, 1)
