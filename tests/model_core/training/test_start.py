"""Starting a run: refusals that leave no files, and the `start` event."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_core.config import ExperimentConfig
from model_core.hardware.device import Gpu, Machine, decide
from model_core.storage.run import Run
from model_core.train import main
from model_core.training.start import emit_start_event, ignored_variables

pytestmark = pytest.mark.usefixtures("signals")
Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    "setting", ["data.source=file:gone.txt", "checkpoint.load_checkpoint=gone", "training.max_tokens=64"]
)
def test_what_cannot_begin_takes_no_name(tiny: Tiny, tmp_path: Path, setting: str) -> None:
    assert main(["--config", str(tiny()), "--set", setting]) == 2
    assert not (tmp_path / "exp" / "tiny").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "'tiny-2'"),
        (["--run", "../x"], "'../x'"),
        (["--run", "gone", "--resume"], "'gone'"),
        (["--run", "new", "--set", "data.source=null", "--set", "data.train_file=gone_train.npy"], "gone_train.npy"),
        (["--run", "new", "--gpu", "99"], "99"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tiny: Tiny, more: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    file = str(tiny(training={"max_steps": 3}))
    main(["--config", file])
    capsys.readouterr()
    assert main(["--config", file, *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line


def test_data_made_in_another_way_takes_no_name_either(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = str(tiny())
    assert main(["--config", config]) == 0
    assert main(["--config", config, "--run", "other", "--set", "data.dedupe=true"]) == 2
    said = capsys.readouterr().err
    assert all(value in said for value in ("dedupe", "false", "true"))
    assert not (tmp_path / "exp" / "other").exists()


def test_a_held_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny()
    main(["--config", str(file)])
    with Run(tmp_path / "exp" / "tiny").lock():
        assert main(["--config", str(file), "--resume"]) == 76


CARDS = (Gpu("A100", (8, 0), 40 << 30, "GPU-a"), Gpu("T4", (7, 5), 16 << 30, "GPU-b"))


def told(tree: dict, machine: Machine, gpu: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """The `start` event and the codes of the warnings behind it."""
    events: list[dict[str, Any]] = []
    config = ExperimentConfig.model_validate(tree)
    emit_start_event(
        lambda kind, **fields: events.append({"type": kind, **fields}), config, decide(config, machine, gpu), gpu
    )
    start, *warnings = events
    assert (start["type"], {event["type"] for event in warnings}) in (("start", set()), ("start", {"warning"}))
    return start, [event["code"] for event in warnings]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_SDP_KERNEL", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_the_gpu_asked_for_and_the_visible_ones_are_both_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    start, _ = told({}, Machine("Linux", 8, CARDS), gpu=1)
    assert (start["asked"]["gpu"], start["environment"]["cuda_visible_devices"]) == (1, "5,7")
    gpu = start["used"]["gpu"]
    assert (start["used"]["device"], gpu["index"], gpu["name"], gpu["uuid"]) == ("cuda:1", 1, "T4", "GPU-b")


def test_what_was_asked_stands_beside_what_is_used_and_why() -> None:
    tree = {"device": {"dtype": "bfloat16"}, "model": {"dropout": 0.1, "n_layer": 2}}
    start, codes = told(tree, Machine("Linux", 8))
    assert (start["asked"]["device"], start["used"]["device"]) == ("auto", "cpu")
    assert (start["asked"]["dtype"], start["used"]["dtype"]) == ("bfloat16", "bfloat16")
    assert [layer["kernel"] for layer in start["used"]["kernels"]] == ["math", "math"]
    assert start["used"]["off"].keys() == {"compile", "tf32", "flash", "pinned_batches"}
    assert start["used"]["off"]["flash"] == "layers 0-1: dropout takes the math kernel on the CPU"
    assert codes == []


def test_what_cannot_be_had_is_warned_about_and_does_not_stop_the_run() -> None:
    tree = {"execution": {"use_compile": True}, "device": {"attention_backend": "flash"}}
    start, codes = told(tree, Machine("Windows", 8, CARDS), gpu=1)
    assert codes == ["bfloat16_off", "compile_off", "flash_off"]
    assert (start["asked"]["use_compile"], start["used"]["compile_mode"]) == (True, None)


@pytest.mark.parametrize(
    ("variable", "key"), [("PYTORCH_SDP_KERNEL", "attention_backend"), ("NVIDIA_TF32_OVERRIDE", "tf32")]
)
def test_a_variable_without_effect_is_warned_about(variable: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    start, codes = told({}, Machine("Linux", 8))
    expected = f"{variable} is set in the environment and has no effect; use device.{key}"
    assert (start["environment"]["ignored"], codes) == ([expected], ["variable_ignored"])
    assert ignored_variables({}) == []
