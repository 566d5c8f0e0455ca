"""Which hardware is used, decided on descriptions of machines that need not be at hand."""

import pytest

from model_core.config import ExperimentConfig
from model_core.device import Gpu, Machine, Runtime, decide
from model_core.errors import DeviceUnavailable

A100 = Gpu("A100", (8, 0), 40 << 30, "GPU-a")
T4 = Gpu("T4", (7, 5), 16 << 30, "GPU-b")
CPU = Machine("Linux", cores=8)
WITH_TWO = Machine("Linux", 8, (A100, T4))


def on(machine: Machine, gpu: int | None = None, compiled: bool = False, **device: object) -> Runtime:
    tree = {"device": device, "execution": {"use_compile": compiled}}
    return decide(ExperimentConfig.model_validate(tree), machine, gpu)


def test_auto_takes_the_best_there_is() -> None:
    assert [on(m).device for m in (CPU, WITH_TWO, Machine("Darwin", 8, mps=True))] == ["cpu", "cuda:0", "mps"]


@pytest.mark.parametrize(("asked", "machine"), [("cuda", CPU), ("mps", CPU)])
def test_what_is_absent_is_refused_by_name(asked: str, machine: Machine) -> None:
    with pytest.raises(DeviceUnavailable, match=asked):
        on(machine, device=asked)


def test_an_absent_gpu_lists_those_present() -> None:
    with pytest.raises(DeviceUnavailable, match="no GPU 2; visible GPUs are 0: A100, 1: T4"):
        on(WITH_TWO, gpu=2)


def test_an_old_card_gets_float16_with_the_scaler_and_says_why() -> None:
    runtime = on(WITH_TWO, gpu=1)
    assert (runtime.device, runtime.dtype, runtime.scaler, runtime.tf32) == ("cuda:1", "float16", True, False)
    assert "T4" in runtime.off["bfloat16"]


def test_a_new_card_gets_what_it_is_asked_for() -> None:
    runtime = on(WITH_TWO, compiled=True)
    assert (runtime.dtype, runtime.tf32, runtime.pinned, runtime.compile) == ("bfloat16", True, True, True)
    assert runtime.off == {}


def test_compile_is_off_on_windows_with_a_reason() -> None:
    runtime = on(Machine("Windows", 8, (A100,)), compiled=True)
    assert not runtime.compile
    assert "Windows" in runtime.off["compile"]


def test_flash_with_float32_falls_back_with_a_reason() -> None:
    runtime = on(WITH_TWO, dtype="float32", attention_backend="flash")
    assert runtime.attention_backend == "auto"
    assert "float32" in runtime.off["flash"]


def test_threads_are_the_cores_unless_said() -> None:
    assert (on(CPU).threads, on(CPU, threads=3).threads) == (8, 3)
