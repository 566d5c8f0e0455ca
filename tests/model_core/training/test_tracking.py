"""TensorBoard and Weights & Biases get the numbers of events.jsonl, each step once."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model_core.storage.events import read_events
from model_core.train import main

pytestmark = pytest.mark.usefixtures("signals")
Tiny = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
Curves = dict[str, dict[int, float]]
STEP, VALIDATION = ("loss", "lr", "grad_norm", "tokens_per_s"), ("val_loss", "bits_per_byte")
SHORT = {"max_steps": 6}


def told(run: Path) -> Curves:
    """The series of events.jsonl; a step told again counts as told last."""
    curves: Curves = {}
    for event in read_events(run / "events.jsonl"):
        for name in {"step": STEP, "validation": VALIDATION}.get(event["type"], ()):
            curves.setdefault(name, {})[event["step"]] = event[name]
    return curves


def repeat_the_last_step(file: Path, run: Path) -> None:
    """Go on as after a kill: from the state of step 5, so that step 6 is taken and told again."""
    for rolling in run.glob("model_latest.*"):
        rolling.unlink()
    assert main(["--config", str(file), "--resume"]) == 0


def on_tensorboard(run: Path) -> list[tuple[str, int, float]]:
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return [(tag, point.step, point.value) for tag in read.Tags()["scalars"] for point in read.Scalars(tag)]


def test_tensorboard_reads_back_what_the_events_report_and_each_step_once(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(logging={"tensorboard": True}, training=SHORT), tmp_path / "exp" / "tiny"
    assert main(["--config", str(file)]) == 0
    repeat_the_last_step(file, run)
    points = on_tensorboard(run)
    expected = {(name, step): value for name, curve in told(run).items() for step, value in curve.items()}
    assert len(points) == len(expected)
    assert {(name, step): value for name, step, value in points} == pytest.approx(expected, rel=1e-6)  # float32
    assert [event["step"] for event in read_events(run / "events.jsonl") if event["type"] == "step"][-2:] == [6, 6]


def records(file: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format after a header of 7 bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # whole, or the last part
            yield parts
            parts = b""


def on_wandb(run: Path) -> Curves:
    from wandb.proto.wandb_internal_pb2 import Record

    curves: Curves = {}
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for line in (Record.FromString(record).history for record in records(file)):
            values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.item}
            for name in values.keys() & {*STEP, *VALIDATION}:
                curves.setdefault(name, {})[values["_step"]] = values[name]
    return curves


@pytest.mark.slow
def test_wandb_offline_holds_what_the_events_report_and_needs_no_network(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(logging={"wandb": "offline"}, training=SHORT), tmp_path / "exp" / "tiny"
    program = [sys.executable, "-m", "model_core.train", "--config", str(file)]
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "PYTHONPATH": ":".join(sys.path), "WANDB_API_KEY": "k" * 40}
    finished = subprocess.run(program, env=nowhere, capture_output=True, text=True, check=False)
    repeat_the_last_step(file, run)
    assert (finished.returncode, finished.stdout) == (0, "")
    assert on_wandb(run) == told(run)
    names = {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")}
    assert names == {(run / "wandb" / "id").read_text()}
    assert not any(b"k" * 40 in path.read_bytes() for path in run.rglob("*") if path.is_file())


@pytest.mark.slow
def test_wandb_online_keeps_its_files_here_where_nothing_answers(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(logging={"wandb": "online"}, training=SHORT), tmp_path / "exp" / "tiny"
    program = [sys.executable, "-m", "model_core.train", "--config", str(file)]
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": ":".join(sys.path), "WANDB_API_KEY": "k" * 40}
    subprocess.run(program, env=nowhere, check=True, capture_output=True)
    codes = {event["code"] for event in read_events(run / "events.jsonl") if event["type"] == "warning"}
    assert (on_wandb(run), codes & {"wandb_offline", "tracking_stopped"}) == (told(run), {"wandb_offline"})


@pytest.mark.parametrize(("name", "value"), [("tensorboard", True), ("wandb", "offline")])
def test_a_tracker_that_is_not_installed_is_named_before_a_run_is_made(
    name: str,
    value: object,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    assert main(["--config", str(tiny(logging={name: value}))]) == 2
    said = capfd.readouterr().err
    assert f"logging.{name}" in said
    assert f"pip install 'headcount[{name}]'" in said
    assert not (tmp_path / "exp").exists()


@pytest.mark.slow
def test_neither_package_is_loaded_where_it_is_off(tiny: Tiny) -> None:
    program = "import sys; from model_core.train import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, "--config", str(tiny(training=SHORT))]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "model_core.training.tracking" in loaded
    assert not {"tensorboard", "wandb"} & set(loaded)


def test_a_tracker_that_breaks_is_reported_and_costs_no_training(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(logging={"tensorboard": True}, training=SHORT), tmp_path / "exp" / "tiny"
    assert main(["--config", str(file), "--set", "training.max_steps=3"]) == 0
    (run / "tensorboard").rename(run / "moved")
    (run / "tensorboard").write_text("no directory")
    assert main(["--config", str(file), "--resume"]) == 0
    warnings = [event["detail"] for event in read_events(run / "events.jsonl") if event["type"] == "warning"]
    assert sum("tensorboard" in detail for detail in warnings) == 1
