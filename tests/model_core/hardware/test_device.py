"""Choice of device and data type, on described machines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_core.config import ExperimentConfig, ModelConfig
from model_core.data.loader import LoaderConfig, TokenLoader
from model_core.errors import DeviceUnavailable
from model_core.gpt import GPT
from model_core.hardware.device import Gpu, Machine, Runtime, apply, decide, describe_machine, has_bfloat16

A100 = Gpu("A100", (8, 0), 40 << 30, "GPU-a")
T4 = Gpu("T4", (7, 5), 16 << 30, "GPU-b")
CPU = Machine("Linux", cores=8)
OLD_CPU = Machine("Linux", cores=8, cpu_bfloat16=False)
MAC = Machine("Darwin", 8, mps=True)
WITH_TWO = Machine("Linux", 8, (A100, T4))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")


def on(
    machine: Machine, gpu: int | None = None, *, compiled: bool = False, model: dict | None = None, **device: object
) -> Runtime:
    tree = {"device": device, "execution": {"use_compile": compiled}, "model": model or {}}
    return decide(ExperimentConfig.model_validate(tree), machine, gpu)


def codes(runtime: Runtime) -> list[str]:
    return [code for code, _ in runtime.warnings]


def test_auto_takes_the_best_there_is() -> None:
    assert [on(m).device for m in (CPU, WITH_TWO, MAC)] == ["cpu", "cuda:0", "mps"]


@pytest.mark.parametrize(("asked", "machine"), [("cpu", WITH_TWO), ("cuda", WITH_TWO), ("mps", MAC)])
def test_what_is_there_is_used_as_asked(asked: str, machine: Machine) -> None:
    assert on(machine, device=asked).device_type == asked


@pytest.mark.parametrize(("asked", "machine"), [("cuda", CPU), ("mps", CPU)])
def test_an_absent_device_is_refused_by_name(asked: str, machine: Machine) -> None:
    with pytest.raises(DeviceUnavailable, match=asked):
        on(machine, device=asked)


def test_an_absent_gpu_lists_those_present() -> None:
    with pytest.raises(DeviceUnavailable, match=r"2.*0: A100, 1: T4"):
        on(WITH_TWO, gpu=2)
    with pytest.raises(DeviceUnavailable, match=r"0.*none"):
        on(CPU, gpu=0)


def test_a_gpu_and_another_device_contradict_each_other() -> None:
    with pytest.raises(DeviceUnavailable, match=r"0.*cpu"):
        on(WITH_TWO, gpu=0, device="cpu")


def test_the_gpu_used_is_reported_by_name_uuid_and_index() -> None:
    told = on(WITH_TWO, gpu=1).describe()
    assert (told["device"], told["gpu"]["index"], told["gpu"]["name"], told["gpu"]["uuid"]) == (
        "cuda:1",
        1,
        "T4",
        "GPU-b",
    )
    assert on(CPU).describe()["gpu"] is None


def test_an_old_card_gets_float16_with_the_scaler_and_says_why() -> None:
    runtime = on(WITH_TWO, gpu=1)
    assert (runtime.device, runtime.dtype, runtime.scaler, runtime.tf32) == ("cuda:1", "float16", True, False)
    assert "T4" in runtime.off["bfloat16"]
    assert codes(runtime) == ["bfloat16_off"]


def test_a_new_card_gets_what_it_is_asked_for() -> None:
    runtime = on(WITH_TWO, compiled=True)
    assert (runtime.dtype, runtime.tf32, runtime.pinned, runtime.fused_adamw) == ("bfloat16", True, True, True)
    assert (runtime.off, runtime.warnings) == ({}, ())


@pytest.mark.parametrize(
    ("machine", "gpu", "dtype"),
    [
        (CPU, None, "bfloat16"),
        (OLD_CPU, None, "float32"),
        (WITH_TWO, 0, "bfloat16"),
        (WITH_TWO, 1, "float16"),
        (MAC, None, "float16"),
    ],
)
def test_an_automatic_number_format_suits_the_device_and_warns_of_nothing(
    machine: Machine, gpu: int | None, dtype: str
) -> None:
    runtime = on(machine, gpu, dtype="auto")
    assert (runtime.dtype, codes(runtime)) == (dtype, [])


def test_metal_computes_in_float16_with_a_warning() -> None:
    runtime = on(MAC)
    assert (runtime.dtype, runtime.scaler, codes(runtime)) == ("float16", True, ["bfloat16_off"])


def test_float16_on_a_cpu_is_honoured_with_the_scaler_and_a_warning() -> None:
    runtime = on(CPU, dtype="float16")
    assert (runtime.dtype, runtime.scaler, codes(runtime)) == ("float16", True, ["float16_slow"])


def test_bfloat16_on_a_cpu_without_instructions_for_it_is_honoured_with_a_warning() -> None:
    runtime = on(OLD_CPU, dtype="bfloat16")
    assert (runtime.dtype, codes(runtime)) == ("bfloat16", ["bfloat16_slow"])
    assert on(CPU, dtype="bfloat16").warnings == ()


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 f16c\n", False),
    ],
)
def test_instructions_for_bfloat16_are_read_from_cpuinfo(tmp_path: Path, text: str, known: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert has_bfloat16(cpuinfo) is known


def test_where_the_kernel_reports_nothing_no_instructions_for_bfloat16_are_assumed(tmp_path: Path) -> None:
    assert not has_bfloat16(tmp_path / "cpuinfo")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_only_float16_has_a_scaler(dtype: str) -> None:
    assert not any(on(machine, dtype=dtype).scaler for machine in (CPU, WITH_TWO))


@pytest.mark.parametrize(
    ("machine", "mode"),
    [
        (WITH_TWO, "max-autotune"),
        (replace(WITH_TWO, system="Darwin"), "default"),
        (CPU, "default"),
        (MAC, "default"),
        (replace(WITH_TWO, system="Windows"), None),
    ],
)
def test_the_slow_search_for_kernels_is_made_on_linux_with_cuda_alone(machine: Machine, mode: str | None) -> None:
    assert on(machine, compiled=True).compile_mode == mode
    assert on(machine).compile_mode is None


def test_compile_is_off_on_windows_with_a_reason_and_a_warning() -> None:
    runtime = on(Machine("Windows", 8, (A100,)), compiled=True)
    assert "Windows" in runtime.off["compile"]
    assert codes(runtime) == ["compile_off"]


def test_the_fused_optimizer_falls_back_where_there_is_none() -> None:
    runtime = on(replace(MAC, fused=("cpu",)))
    assert not runtime.fused_adamw
    assert runtime.off["fused_adamw"] == "this PyTorch has no fused AdamW for mps; the plain one is used"
    assert on(replace(CPU, fused=("cpu",))).fused_adamw


def test_batches_are_pinned_for_cuda_alone() -> None:
    assert [on(machine).pinned for machine in (CPU, MAC, WITH_TWO)] == [False, False, True]
    assert "pinned_batches" in on(CPU).off


def test_tf32_needs_a_card_that_has_it_and_the_setting() -> None:
    assert [on(WITH_TWO, gpu).tf32 for gpu in (0, 1)] == [True, False]
    unwanted = on(WITH_TWO, tf32=False)
    assert (unwanted.tf32, unwanted.off["tf32"]) == (False, "device.tf32 is false")
    assert "8.0" in on(CPU).off["tf32"]


def test_flash_that_cannot_be_had_is_reported_by_layer_and_warned_about_when_asked_for() -> None:
    model = {"n_layer": 2, "n_head_list": [2, 12]}
    asked, unasked = on(WITH_TWO, model=model, attention_backend="flash"), on(WITH_TWO, model=model)
    assert [layer.kernel for layer in asked.kernels] == ["efficient", "flash"]
    assert asked.off["flash"] == unasked.off["flash"] == "layer 0: head size 384 is above 256"
    assert (codes(asked), codes(unasked)) == (["flash_off"], [])
    assert on(WITH_TWO, attention_backend="math").off["flash"] == "device.attention_backend is math"


def test_threads_are_the_cores_unless_the_environment_or_the_configuration_has_a_number() -> None:
    asked = replace(CPU, threads=2)
    assert (on(CPU).threads, on(asked).threads, on(asked, threads=3).threads) == (8, 2, 3)


@pytest.mark.parametrize(
    ("dropout", "asked", "kernel", "operation"),
    [
        (0.0, "auto", "flash", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        (0.0, "math", "math", "aten::_scaled_dot_product_attention_math"),
        (0.1, "flash", "math", "aten::_scaled_dot_product_attention_math"),
    ],
)
def test_the_reported_kernels_are_those_that_run(dropout: float, asked: str, kernel: str, operation: str) -> None:
    shape = {"n_layer": 2, "n_embd": 16, "n_head_list": [4, 1], "vocab_size": 40, "block_size": 8, "dropout": dropout}
    runtime, model = on(CPU, model=shape, attention_backend=asked), GPT(ModelConfig.model_validate(shape))
    with torch.profiler.profile() as profile, runtime.autocast(), runtime.attention():
        model(torch.zeros(1, 8, dtype=torch.long))
    ran = {event.key: event.count for event in profile.key_averages() if "_scaled_dot_product_" in event.key}
    assert ran == {operation: 2}
    assert [layer.kernel for layer in runtime.kernels] == [kernel, kernel]


def test_this_machine_describes_itself_and_can_be_used() -> None:
    machine = describe_machine()
    runtime = on(machine, dtype="auto")
    assert machine.cores >= 1
    assert "cpu" in machine.fused
    assert torch.zeros(1, device=runtime.device).device.type == runtime.device_type


@pytest.mark.gpu
@needs_cuda
def test_a_decision_for_cuda_is_applied_to_the_process() -> None:
    last = torch.cuda.device_count() - 1
    runtime = on(describe_machine(), gpu=last)
    apply(runtime)
    assert torch.cuda.current_device() == last
    assert torch.backends.cuda.matmul.allow_tf32 == runtime.tf32
    assert runtime.gpu is not None
    assert runtime.gpu.name == torch.cuda.get_device_name(last)


@pytest.mark.gpu
@needs_cuda
def test_batches_reach_the_gpu_from_page_locked_memory_unchanged() -> None:
    tokens, config = np.arange(100, dtype=np.uint16), LoaderConfig(2, 8)
    idx, targets = TokenLoader(tokens, config, device="cuda", pin_memory=on(describe_machine()).pinned).next_batch()
    expected = TokenLoader(tokens, config).next_batch()
    assert (idx.device.type, targets.device.type) == ("cuda", "cuda")
    assert [torch.equal(a.cpu(), b) for a, b in zip((idx, targets), expected, strict=True)] == [True, True]
