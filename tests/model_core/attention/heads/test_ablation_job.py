"""Ablation as a worker starts it: events, an outcome, a result, and attempts that go on where another stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_core.attention.heads.ablation import ablate
from model_core.attention.heads.ablation_job import main
from model_core.attention.heads.ablation_record import (
    AblationOptions,
    PartialFile,
    ablation_name,
    parts,
    read_result,
    read_sample,
    result_file,
)
from model_core.config_loader import to_yaml
from model_core.storage.dataset import Dataset
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run
from tests.model_core.attention.heads.ablation_fixtures import SHAPES, TOKENS, T, make_run, random_model
from tests.polling import eventually

OPTIONS = {"tokens": TOKENS, "draws": 2}
HEADS = SHAPES["unequal"]
UNTIMED = {"seconds": 0, "created_at": ""}


class Job:
    """A run, and the job that ablates its heads."""

    def __init__(self, data: Path) -> None:
        self.layout, self.record = Layout.under(data), data / "jobs" / "job_1"
        self.run = make_run(self.layout, HEADS)
        self.record.mkdir(parents=True)
        (self.record / "config.yaml").write_text(to_yaml(self.run.config()), encoding="utf-8")
        what = ["--config", str(self.record / "config.yaml"), "--run", "mine", "--data-root", str(data)]
        self.arguments = [*what, "--job-id", "job_1", "--record", str(self.record), "--options", json.dumps(OPTIONS)]

    @property
    def dataset(self) -> Dataset:
        return Dataset.named("tales", self.layout.dataset("tales"))

    @property
    def result(self) -> Path:
        options = AblationOptions.model_validate(OPTIONS)
        sample = read_sample(self.dataset, options, block_size=T, vocab_size=300)
        return result_file(self.layout, "mine", ablation_name(Run(self.run.path).resolve("best"), options, sample))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.record / "events.jsonl") if event["type"] == kind]

    @property
    def outcome(self) -> dict[str, Any]:
        outcome: dict[str, Any] = read_json(self.record / "outcome.json")
        return outcome


@pytest.fixture
def job(tmp_path: Path, signals: None) -> Job:
    return Job(tmp_path)


def test_a_job_measures_once_what_its_outcome_names(job: Job) -> None:
    assert main(job.arguments) == 0
    result = read_result(job.layout, "mine", job.outcome["name"])
    assert (job.result.stem, job.outcome["sha256"]) == (job.outcome["name"], job.run.resolve("best").sha256)
    assert [(head["layer"], head["head"]) for head in result["heads"]] == [
        (layer, head) for layer, count in enumerate(HEADS) for head in range(count)
    ]
    assert [layer["above_null"] for layer in result["heads"][-1:]] == [None]
    progress = [(event["done"], event["of"], event["unit"]) for event in job.told("progress")]
    assert (progress[0], progress[-1]) == ((0, 19, "passes"), (19, 19, "passes"))
    assert all("eta_s" in event for event in job.told("progress")[2:])

    assert main(job.arguments) == 0
    assert [event["outcome"] for event in job.told("end")] == ["succeeded", "succeeded"]
    assert len(job.told("progress")) == len(progress)


def test_an_attempt_goes_on_after_the_finished_passes_of_another(job: Job) -> None:
    options = AblationOptions.model_validate(OPTIONS)
    sample = read_sample(job.dataset, options, block_size=T, vocab_size=300)
    every = list(ablate(random_model(HEADS), sample.ids, options))
    for one in every[:12]:
        PartialFile(job.result).append(one)
    assert main(job.arguments) == 0
    resumed = read_json(job.result)
    assert len(job.told("progress")) == 1 + len(every) - 12
    assert job.told("progress")[0]["done"] == 11

    job.result.unlink()
    assert main(job.arguments) == 0
    assert {**read_json(job.result), **UNTIMED} == {**resumed, **UNTIMED}


@pytest.mark.parametrize(
    ("code", "options", "lost"),
    [
        ("checkpoint_not_found", {"checkpoint": "step=5"}, None),
        ("invalid_config", {"baseline": "avarage"}, None),
        ("invalid_data", {"tokens": 64, "baseline": "resample", "draws": 64}, None),
        ("dataset_not_ready", {}, "datasets/tales/tales_test.npy"),
        ("checkpoint_not_ready", {}, "exp/mine/model_best.pt"),
    ],
    ids=["checkpoint", "option", "sample", "dataset", "none"],
)
def test_a_job_that_cannot_measure_says_why(
    job: Job, tmp_path: Path, code: str, options: Any, lost: str | None
) -> None:
    if lost is not None:
        (tmp_path / lost).unlink()
    assert main([*job.arguments, "--options", json.dumps(options)]) == 2
    assert (job.outcome["outcome"], job.outcome["error"]["code"]) == ("failed", code)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_process_that_ends_half_way_costs_no_finished_pass(job: Job, number: int, code: int) -> None:
    partial = PartialFile(job.result)
    command = [sys.executable, "-P", "-m", "model_core.attention.heads.ablation_job", *job.arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
        eventually(lambda: len(partial.read()) >= 3)
        process.send_signal(number)
        ended = process.wait()
    kept = {one.key for one in partial.read()}
    assert (ended, bool(kept)) in {(code, True), (0, False)}
    assert main(job.arguments) == 0
    every = 1 + len(list(parts(HEADS, AblationOptions.model_validate(OPTIONS))))
    last = [event for event in job.told("progress") if event["attempt"] == 2]
    assert len(last) == 1 + every - len(kept)
