"""`python -m model_core.train` by hand: its files, and exact resumption."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_core.checkpoint import newest_full_state, read_state, writer
from model_core.storage.dataset import Dataset
from model_core.storage.events import read_events, series
from model_core.storage.files import read_json, write_json
from model_core.storage.run import Run
from model_core.train import main
from tests.model_core.event_log import events_of, series_of

pytestmark = pytest.mark.usefixtures("signals")
Tiny = Callable[..., Path]


def warnings(run: Path, code: str) -> list[dict]:
    return [event for event in events_of(run, "warning") if event["code"] == code]


def test_a_run_leaves_what_the_document_promises(tiny: Tiny, tmp_path: Path) -> None:
    assert main(["--config", str(tiny(execution={"test": True}))]) == 0
    run = tmp_path / "exp" / "tiny"
    files = {file.name for file in run.iterdir()}
    assert files >= {"config.yaml", "events.jsonl", "outcome.json", "attempt", "model_best.pt", "model_final.pt"}
    assert {"model_00015.pt", "model_00020.pt", "model_latest.pt"} <= files
    assert not files & {"model_00005.pt", "model_00010.pt"}  # pruned
    assert (run / "logs" / "log.txt").read_text().count("step=") >= 20
    assert set(series_of(run)) == set(range(1, 21))
    validations = series(read_events(run / "events.jsonl"), "validation", "val_loss")
    assert list(validations) == [0, 10, 20]
    assert validations[20] < validations[0]
    assert [len(e["texts"]) for e in events_of(run, "sample")] == [2, 2]
    pictures = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("attention_outputs/tiny/*/*.png"))
    assert pictures == [f"attention_outputs/tiny/{k}/layer0{n}.png" for k in (0, 1) for n in (0, 1)]
    outcome = json.loads((run / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["rendered"]) == ("succeeded", 2)
    assert outcome["test_loss"] > 0


def test_the_sidecar_reports_what_the_checkpoint_is(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny())])
    run = Run(tmp_path / "exp" / "tiny")
    best = run.resolve("best")
    validations = series(read_events(run.events), "validation", "val_loss")
    assert best.val_loss == min(loss for step, loss in validations.items() if step)
    assert best.size_bytes == (run.path / "model_best.pt").stat().st_size
    state = torch.load(run.path / "model_latest.pt", weights_only=True)
    assert not any(name.startswith(("_orig_mod", "module")) for name in state["model"])


def test_the_same_seed_gives_the_same_losses(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny("one"))])
    main(["--config", str(tiny("two"))])
    assert series_of(tmp_path / "exp" / "one") == series_of(tmp_path / "exp" / "two")


def test_what_listens_does_not_change_the_losses(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny("loud", model={"dropout": 0.1}))])
    quiet = {"sample_num": 0, "val_loss_every": 1000, "checkpoint_every": 1000}
    main(["--config", str(tiny("quiet", model={"dropout": 0.1}, evaluation=quiet, logging={"log_to_file": False}))])
    assert series_of(tmp_path / "exp" / "loud") == series_of(tmp_path / "exp" / "quiet")
    assert not (tmp_path / "exp" / "quiet" / "logs").exists()


def test_a_new_run_can_begin_where_another_stopped(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny("straight"))])
    main(["--config", str(tiny("first", training={"max_steps": 20}))])
    (tmp_path / "exp" / "first" / "model_00020.pt").unlink()
    file = tiny("second", checkpoint={"load_checkpoint": "first/model_00015.pt"})
    assert main(["--config", str(file)]) == 0
    second = series_of(tmp_path / "exp" / "second")
    straight = series_of(tmp_path / "exp" / "straight")
    assert second == {step: loss for step, loss in straight.items() if step > 15}
    assert (tmp_path / "exp" / "second" / "model_best.pt").is_file()
    file = tiny("third", checkpoint={"load_checkpoint": "first/model_final.pt"})
    assert main(["--config", str(file)]) == 0
    assert "weights_only" in [event["code"] for event in events_of(tmp_path / "exp" / "third", "warning")]


def test_a_state_beyond_the_last_step_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture) -> None:
    main(["--config", str(tiny("first"))])
    file = tiny("second", checkpoint={"load_checkpoint": "first"}, training={"max_steps": 20})
    assert main(["--config", str(file)]) == 2
    assert "20" in capsys.readouterr().err


def test_a_configuration_changed_behind_the_checkpoints_back_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["--config", str(tiny())])
    readable = tmp_path / "exp" / "tiny" / "config.yaml"
    readable.write_text(readable.read_text().replace("max_lr: 0.01", "max_lr: 0.02"))
    assert main(["--config", str(tiny()), "--resume"]) == 2
    said = capsys.readouterr().err
    assert all(value in said for value in ("training.max_lr", "0.02", "0.01", "model_latest.pt"))


def test_a_test_takes_its_model_from_the_checkpoint(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["--config", str(tiny())])
    test = tmp_path / "test.yaml"
    test.write_text(
        f"experiment_name: tiny\nexecution: {{train: false, test: true}}\n"
        f"output: {{exp_dir: {tmp_path / 'exp'}, attention_dir: {tmp_path / 'attention_outputs'}}}\n"
        f"testing: {{num_test_samples: 1, max_seq_len_viz: 6, dpi: 40}}\n"
    )
    assert main(["--config", str(test)]) == 0
    assert (tmp_path / "attention_outputs" / "tiny" / "0" / "layer01.png").is_file()
    capsys.readouterr()
    assert main(["--config", str(test), "--set", "model.block_size=64"]) == 2
    said = capsys.readouterr().err
    assert all(value in said for value in ("model.block_size", "64", "32", "model_best.pt"))


def test_a_loss_that_is_not_a_number_ends_the_run(tiny: Tiny, tmp_path: Path) -> None:
    training = {"max_lr": 1e30, "min_lr": 0, "grad_clip": 0, "warmup_steps": 0}
    file = tiny(training=training, evaluation={"checkpoint_every": 1})
    assert main(["--config", str(file)]) == 1
    run = Run(tmp_path / "exp" / "tiny")
    (end,) = events_of(run.path, "end")
    last = len(series_of(run.path))
    assert (end["error"]["code"], end["error"]["step"], end["step"]) == ("non_finite_loss", last + 1, last)
    assert end["grad_norm"] in {"nan", "inf"}
    assert json.loads((run.path / "outcome.json").read_text())["grad_norm"] == end["grad_norm"]
    kept = newest_full_state(run, pytest.fail)
    assert kept is not None
    assert kept[1]["step"] == last


def test_the_start_event_says_what_was_asked_and_used(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny(training={"max_tokens": 640, "batch_size": 1}, device={"tf32": True}))])
    (event,) = events_of(tmp_path / "exp" / "tiny", "start")
    assert event["max_steps"] == 10
    assert event["asked"]["tf32"] is True
    assert (event["batch_size"], event["accumulation"]) == (1, 4)
    assert (event["asked"]["device"], event["used"]["device"]) == ("cpu", "cpu")
    assert "tf32" in event["used"]["off"]


def test_the_end_reports_speed_waiting_and_use_of_the_hardware(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny(training={"max_steps": 3}, device={"device": "auto", "dtype": "auto"}))])
    run = tmp_path / "exp" / "tiny"
    (end,), outcome = events_of(run, "end"), json.loads((run / "outcome.json").read_text())
    assert end["tokens_per_s"] > 0
    assert 0 < end["data_wait_share"] < 1
    assert end["mfu"] is None
    assert end["mfu_reason"]
    assert end["peak_memory_bytes"] > 0
    steps = events_of(run, "step")
    assert [step["memory_bytes"] <= end["peak_memory_bytes"] and "mfu" not in step for step in steps] == [True] * 3
    assert {
        key: outcome[key] for key in ("tokens_per_s", "data_wait_share", "mfu", "mfu_reason")
    }.items() <= end.items()
    (line,) = [line for line in (run / "logs" / "log.txt").read_text().splitlines() if "trained step=3" in line]
    assert f"tokens_per_s={end['tokens_per_s']!r}" in line


def test_a_run_that_was_halved_goes_on_so_and_another_run_does_not(tiny: Tiny, tmp_path: Path) -> None:
    halving = {"on_oom": "halve", "batch_size": 2}
    file, run = tiny("halved", training=halving), Run(tmp_path / "exp" / "halved")
    main(["--config", str(file)])
    info, state = read_state(run, run.resolve("step=15"))
    state["batch_size"] = 1  # as if memory had run out
    run.publish(info.file, writer(state), attempt=1, step=15, full=True, loss=info.loss, val_loss=info.val_loss)
    for later in ("model_00020.pt", "model_latest.pt"):
        (run.path / later).unlink()
    assert main(["--config", str(file), "--resume"]) == 0
    assert [(event["old"], event["new"]) for event in warnings(run.path, "batch_halved")] == [(2, 1)]
    assert read_state(run, run.resolve("latest"))[1]["batch_size"] == 1
    other = tiny("other", training=halving, checkpoint={"load_checkpoint": "halved/model_00015.pt"})
    assert main(["--config", str(other)]) == 0
    assert events_of(tmp_path / "exp" / "other", "resumed")
    assert warnings(tmp_path / "exp" / "other", "batch_halved") == []


def test_one_step_is_a_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tiny(training={"max_steps": 1, "warmup_steps": 0}, logging={"verbose": False})
    assert main(["--config", str(file)]) == 0
    assert list(series_of(tmp_path / "exp" / "tiny")) == [1]
    assert "step=" not in capsys.readouterr().err


def test_log_lines_and_samples_come_as_often_and_as_long_as_asked_for(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluation = {"sample_every": 20, "sample_num": 3, "sample_length": 4, "sample_top_k": 1, "val_loss_every": 15}
    main(["--config", str(tiny(logging={"log_interval": 7}, evaluation=evaluation))])
    log = (tmp_path / "exp" / "tiny" / "logs" / "log.txt").read_text()
    assert [n for n in range(1, 21) if f" step={n}/20 " in log] == [7, 14]
    assert " step=7/20 " in capsys.readouterr().err
    assert [event["step"] for event in events_of(tmp_path / "exp" / "tiny", "validation")] == [0, 15, 20]
    (sample,) = events_of(tmp_path / "exp" / "tiny", "sample")
    text, *others = sample["texts"]
    assert others == [text, text]  # of the likeliest tokens alone, whatever the seed
    tokenizer = Dataset.named("text", tmp_path / "text_data").tokenizer()
    assert len(tokenizer.encode(text)) == 4


def test_a_dataset_too_short_for_one_batch_says_so(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tiny(training={"batch_size": 4096, "total_batch_size": 65536})
    assert main(["--config", str(file)]) == 2  # the dataset is prepared first
    assert re.search(r"text_train\.npy has \d+ tokens; one batch takes 65537", capsys.readouterr().err)
    assert main(["--config", str(file), "--run", "again"]) == 2
    assert re.search(r"one batch takes 65537 tokens .*; batch_size \d+ would fit", capsys.readouterr().err)
    assert not (tmp_path / "exp" / "again").exists()  # the name stays free


def test_splits_too_small_to_measure_give_null_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    main(["--config", str(tiny(training={"max_steps": 3}))])
    manifest = read_json(tmp_path / "text_data" / "manifest.json")
    for split in ("val", "test"):
        file = tmp_path / "text_data" / f"text_{split}.npy"
        np.save(file, np.array([1], np.uint16))
        manifest["splits"][split]["size_bytes"] = file.stat().st_size
    write_json(tmp_path / "text_data" / "manifest.json", manifest)
    file = tiny("small", training={"max_steps": 3}, execution={"test": True}, testing={"checkpoint_path": "final"})
    assert main(["--config", str(file)]) == 0
    outcome = json.loads((tmp_path / "exp" / "small" / "outcome.json").read_text())
    assert (outcome["val_loss"], outcome["test_loss"], outcome["test_bits_per_byte"]) == (None, None, None)
    assert outcome["reason"] == "the test split has 1 tokens, too few for one row"
    assert len(warnings(tmp_path / "exp" / "small", "no_val_loss")) == 1  # and not at every validation
    assert len(warnings(tmp_path / "exp" / "small", "no_test_loss")) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize(("on_oom", "code", "error_code"), [("fail", 1, "cuda_oom"), ("halve", 0, None)])
def test_memory_of_a_gpu_that_runs_out(
    tiny: Tiny, tmp_path: Path, on_oom: str, code: int, error_code: str | None
) -> None:
    rows = {"batch_size": 128, "sequence_length": 32, "total_batch_size": 4096, "max_steps": 3, "on_oom": on_oom}
    model = {"n_layer": 4, "n_embd": 512, "n_head_list": [8, 8, 4, 4]}
    file = tiny(model=model, training=rows, device={"device": "cuda", "dtype": "auto"})
    torch.cuda.set_per_process_memory_fraction(380 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    assert main(["--config", str(file)]) == code
    run = tmp_path / "exp" / "tiny"
    error = json.loads((run / "outcome.json").read_text())["error"] or {"code": None}
    assert error["code"] == error_code
    assert bool(warnings(run, "batch_halved")) == (on_oom == "halve")
