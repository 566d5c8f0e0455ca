"""The present code reads the run in tests/golden, which `make.py` beside it wrote."""

import json
import shutil
from pathlib import Path

import pytest

from model_core.attention.recording import capture_example
from model_core.checkpoint import load_model
from model_core.generation.engine import generate
from model_core.schemas import AttentionRequest
from model_core.storage.dataset import dataset_of
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run
from model_core.storage.series import SeriesReader
from model_core.train import main

pytestmark = pytest.mark.usefixtures("signals")
GOLDEN = Path(__file__).parents[1] / "golden"
STOPPED_AT = 6


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "data", tmp_path / "data"))


@pytest.fixture
def run(root: Path) -> Run:
    return Run.open(Layout.under(root).run("golden"))


def loss_of(run: Run) -> dict[int, float]:
    series = SeriesReader(run.events).read(["loss"])["loss"]
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_its_checkpoints_are_found_intact_and_write(run: Run) -> None:
    assert {info.file: (info.step, info.full) for info in run.checkpoints()} == {
        "model_00004.pt": (4, True),
        "model_best.pt": (6, False),
        "model_latest.pt": (6, True),
    }
    loaded = load_model(run, "best")
    assert (loaded.config.model.heads, loaded.tokenizer.n_vocab) == ((4, 2), 288)
    texts = generate(loaded.model, loaded.tokenizer, "The 1 cat", n=4, max_new_tokens=8, seed=1)
    assert any(texts)


def test_its_events_are_read(run: Run) -> None:
    events = list(read_events(run.events))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["type"] for event in events} >= {"start", "step", "validation", "sample", "checkpoint", "end"}
    assert (list(loss_of(run)), events[-1]["outcome"]) == ([1, 2, 3, 4, 5, 6], "stopped")
    assert run.outcome() == {**run.outcome(), "schema_version": 1, "outcome": "stopped", "step": STOPPED_AT}


def test_it_goes_on_as_it_would_have(root: Path, run: Run) -> None:
    assert main(["--config", str(GOLDEN / "config.yaml"), "--data-root", str(root), "--resume"]) == 0
    (resumed,) = [event for event in read_events(run.events) if event["type"] == "resumed"]
    assert "data_unknown" in {event.get("code") for event in read_events(run.events)}  # a state of before `data_sha256`
    assert (resumed["file"], resumed["step"]) == ("model_latest.pt", STOPPED_AT)
    after = {step: loss for step, loss in loss_of(run).items() if step > STOPPED_AT}
    expected = {int(step): loss for step, loss in read_json(GOLDEN / "expected.json").items()}
    assert after == pytest.approx(expected, rel=1e-3)  # other processors round differently
    assert json.loads((run.path / "outcome.json").read_text())["outcome"] == "succeeded"


def test_another_run_can_begin_with_it(root: Path) -> None:
    begin = [
        "--run",
        "next",
        "--set",
        "checkpoint.load_checkpoint=golden/model_00004.pt",
        "--set",
        "training.max_steps=6",
    ]
    assert main(["--config", str(GOLDEN / "config.yaml"), "--data-root", str(root), *begin]) == 0
    assert list(loss_of(Run(root / "exp" / "next"))) == [5, 6]


def test_its_dataset_is_read_and_looked_at(root: Path, run: Run) -> None:
    layout = Layout.under(root)
    dataset = dataset_of(run.config(), layout)
    assert (dataset.missing(), dataset.example(0).text.startswith("The ")) == ([], True)
    assert dataset.bytes_per_token("val") == pytest.approx(202 / 76)
    request = AttentionRequest(run="golden", id="0", checkpoint="best", max_tokens=6)
    record = capture_example(load_model(run), "golden", layout, request, dataset)
    assert record.heads == (4, 2)
