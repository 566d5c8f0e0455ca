"""What is compared with the machine before the first step."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.budget import DiskBudget, budget_of
from model_core.config_loader import load_config
from model_core.report import disk_shortage
from model_core.storage.events import read_events
from model_core.train import main

TOO_MUCH = 1 << 60


def needing(total_bytes: int) -> DiskBudget:
    return DiskBudget(0, 0, 0, total_bytes)


def test_a_run_whose_checkpoints_do_not_fit_is_warned_of_both_sizes(tmp_path: Path) -> None:
    (advice,) = disk_shortage(needing(TOO_MUCH), tmp_path / "not" / "there" / "yet")
    assert advice.code == "disk_low"
    assert "1,073,741,824.0 GiB and " in advice.detail
    assert "max_checkpoints_to_keep" in advice.detail
    assert list(disk_shortage(needing(1), tmp_path / "yet")) == []


def test_what_lies_there_already_is_not_counted_again(tmp_path: Path) -> None:
    with (tmp_path / "model_latest.pt").open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert list(disk_shortage(needing(1 << 40), tmp_path)) == []


@pytest.mark.usefixtures("signals")
def test_the_trainer_warns_before_its_first_step(tiny: Callable[..., Path], tmp_path: Path) -> None:
    endless = {"max_steps": 2**40, "max_lr": 1e30, "grad_clip": 0, "warmup_steps": 0}  # it diverges, so it ends
    everything = {"checkpoint_every": 1, "max_checkpoints_to_keep": 2**40}
    assert main(["--config", str(tiny(training=endless, evaluation=everything))]) == 1
    events = list(read_events(tmp_path / "exp" / "tiny" / "events.jsonl"))
    kinds = [event.get("code", event["type"]) for event in events]
    assert kinds.index("disk_low") < kinds.index("step")


@pytest.mark.usefixtures("signals")
def test_the_log_tells_how_many_passes_over_the_data_a_run_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    main(["--config", str(tiny(training={"max_steps": 3, "max_epochs": 0.5}))])
    manifest = json.loads((tmp_path / "text_data" / "manifest.json").read_text())
    epochs = 3 * 64 / manifest["splits"]["train"]["tokens"]
    log = (tmp_path / "exp" / "tiny" / "logs" / "log.txt").read_text()
    assert f"planned steps=3 tokens=192 epochs={epochs:.2f}" in log


@pytest.mark.usefixtures("signals")
def test_checkpoints_are_as_large_as_the_budget_says(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tiny(model={"n_embd": 128, "n_head_list": [4, 2]}, training={"max_steps": 10})  # 4 MB of full state
    main(["--config", str(file)])
    run, disk = tmp_path / "exp" / "tiny", budget_of(load_config(file)).disk
    sizes = {name: (run / f"model_{name}.pt").stat().st_size for name in ("latest", "00010", "best", "final")}
    assert sizes["latest"] == pytest.approx(disk.full_state_bytes, rel=0.02)
    assert sizes["best"] == pytest.approx(disk.weights_bytes, rel=0.02)
    assert sum(path.stat().st_size for path in run.glob("model_*.pt")) < disk.total_bytes
