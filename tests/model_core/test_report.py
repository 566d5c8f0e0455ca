"""The report compares a configuration with its uniform baseline."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_core.budget import DiskBudget, compute_budget
from model_core.config_loader import load_config, read_config
from model_core.report import Report, build_report, count_train_tokens, disk_shortage
from model_core.storage.dataset import Dataset
from model_core.storage.events import read_events
from model_core.train import main

VARIABLE = Path(__file__).parents[2] / "configs" / "variable_heads.yaml"


def report(tmp_path: Path, *settings: str) -> Report:
    return build_report(read_config(VARIABLE, settings), Dataset.named("none", tmp_path))


def row(told: Report, table: int, label: str) -> tuple[str, ...]:
    return next(row for row in told.tables()[table].rows if row[0] == label)


def test_unequal_heads_at_one_width_save_softmax_alone_and_it_says_so(tmp_path: Path) -> None:
    told = report(tmp_path)
    assert row(told, 1, "parameters") == ("parameters", "124,475,904", "124,475,904", "same")
    assert row(told, 1, "KV bytes per token (bf16)")[1:] == ("36,864", "36,864", "same")
    assert row(told, 1, "softmax elements per sequence")[3] == "-27.8 %"
    assert "model.head_dim" in " ".join(told.remarks())


def test_a_head_size_saves_and_the_remark_is_gone(tmp_path: Path) -> None:
    told = report(tmp_path, "model.head_dim=64")
    assert row(told, 1, "parameters")[1:] == ("116,603,904", "124,475,904", "-6.3 %")
    assert row(told, 1, "KV bytes per token (bf16)")[3] == "-27.8 %"
    assert row(told, 1, "softmax elements per sequence") == row(report(tmp_path), 1, "softmax elements per sequence")
    assert list(told.remarks()) == []


def test_a_layer_reports_its_heads_and_whether_the_fused_kernel_takes_them(tmp_path: Path) -> None:
    told = report(tmp_path, "model.n_head_list=[12, 12, 12, 12, 8, 8, 8, 8, 2, 2, 2, 2]")
    assert row(told, 0, "0")[:3] + row(told, 0, "0")[-1:] == ("0", "12", "64", "yes")
    assert row(told, 0, "8")[:3] + row(told, 0, "8")[-1:] == ("8", "2", "384", "no")
    assert "256" in " ".join(told.remarks())


def test_memory_is_reported_by_part(tmp_path: Path) -> None:
    parts = [row[0] for row in report(tmp_path).tables()[2].rows]
    assert parts[1:6] == ["weights", "gradients", "optimizer", "activations", "logits and cross entropy"]


def test_markdown_has_every_table_and_formula(tmp_path: Path) -> None:
    told = report(tmp_path)
    page = told.to_markdown()
    assert page.startswith("# variable_heads\n")
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == [
        *(table.title for table in told.tables()),
        "Formulas",
    ]
    assert "| parameters | 124,475,904 | 124,475,904 | same |" in page


def test_json_has_both_models(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(report(tmp_path).to_dict()))
    assert tree["experiment_name"] == "variable_heads"
    assert tree["budget"]["parameters"] == tree["uniform"]["parameters"] == 124_475_904


def test_epochs_are_implied_by_the_tokens_that_lie_there(tmp_path: Path) -> None:
    dataset = Dataset.named("mine", tmp_path)
    assert (count_train_tokens(dataset), row(report(tmp_path), 3, "epochs")[1]) == (None, "unknown")
    np.save(dataset.train, np.zeros(1_000_000, np.uint16))
    told = build_report(read_config(VARIABLE), dataset)
    assert count_train_tokens(dataset) == 1_000_000
    assert row(told, 3, "epochs")[1] == "9,999.75"


@pytest.mark.parametrize("content", [b"", b"no tokens"])
def test_a_file_that_is_no_token_file_has_no_known_size(tmp_path: Path, content: bytes) -> None:
    dataset = Dataset.named("mine", tmp_path)
    dataset.train.write_bytes(content)
    assert count_train_tokens(dataset) is None


TOO_MUCH = 1 << 60


def needing(total_bytes: int) -> DiskBudget:
    return DiskBudget(0, 0, 0, total_bytes)


def test_a_run_whose_checkpoints_do_not_fit_is_warned_of_both_sizes(tmp_path: Path) -> None:
    (advice,) = disk_shortage(needing(TOO_MUCH), tmp_path / "not" / "there" / "yet")
    assert advice.code == "disk_low"
    assert "1,073,741,824.0 GiB" in advice.detail
    assert "max_checkpoints_to_keep" in advice.detail
    assert list(disk_shortage(needing(1), tmp_path / "yet")) == []


def test_files_that_exist_are_not_counted_again(tmp_path: Path) -> None:
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
def test_the_log_reports_how_many_passes_over_the_data_a_run_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    main(["--config", str(tiny(training={"max_steps": 3, "max_epochs": 0.5}))])
    manifest = json.loads((tmp_path / "text_data" / "manifest.json").read_text())
    epochs = 3 * 64 / manifest["splits"]["train"]["tokens"]
    log = (tmp_path / "exp" / "tiny" / "logs" / "log.txt").read_text()
    assert f"planned steps=3 tokens=192 epochs={epochs:.2f}" in log


@pytest.mark.usefixtures("signals")
def test_checkpoints_are_as_large_as_the_budget_says(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tiny(model={"n_embd": 128, "n_head_list": [4, 2]}, training={"max_steps": 10})  # 4 MB of full state
    main(["--config", str(file)])
    run, disk = tmp_path / "exp" / "tiny", compute_budget(load_config(file)).disk
    sizes = {name: (run / f"model_{name}.pt").stat().st_size for name in ("latest", "00010", "best", "final")}
    assert sizes["latest"] == pytest.approx(disk.full_state_bytes, rel=0.02)
    assert sizes["best"] == pytest.approx(disk.weights_bytes, rel=0.02)
    assert sum(path.stat().st_size for path in run.glob("model_*.pt")) < disk.total_bytes
