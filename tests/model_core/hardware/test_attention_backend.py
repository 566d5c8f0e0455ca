"""Attention kernels on described machines, and as PyTorch chooses them on this one."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_core.config import ModelConfig
from model_core.hardware.attention_backend import Hardware, fallback_summary, layer_kernels, unsupported_reason

A100 = Hardware("cuda", "bfloat16", (8, 0))
RTX_4090 = Hardware("cuda", "bfloat16", (8, 9))
T4 = Hardware("cuda", "float16", (7, 5))
CPU = Hardware("cpu", "bfloat16")
MIXED = ModelConfig(n_layer=4, n_head_list=(12, 2, 1, 256), n_embd=768)


def chosen(model: ModelConfig, hardware: Hardware, asked: str = "auto") -> list[str]:
    return [layer.kernel for layer in layer_kernels(model, hardware, asked)]


def takes_flash(heads: torch.Tensor, dropout: float) -> bool:
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
    except RuntimeError:
        return False
    return True


def test_each_layer_gets_the_fastest_kernel_that_takes_its_heads() -> None:
    assert chosen(MIXED, A100) == ["flash", "efficient", "efficient", "flash"]
    assert chosen(MIXED, A100, "efficient") == ["efficient", "efficient", "efficient", "math"]
    assert chosen(MIXED, A100, "math") == ["math"] * 4


def test_each_layer_says_why_it_has_no_flash() -> None:
    first, second, third, _ = layer_kernels(MIXED, A100, "auto")
    assert (first.layer, first.n_head, first.head_dim, first.reason) == (0, 12, 64, None)
    assert second.reason == "head size 384 is above 256"
    assert third.reason == "head size 768 is above 256"


@pytest.mark.parametrize(
    ("hardware", "dropout", "head_dim", "says"),
    [
        (A100, 0.0, 256, None),
        (A100, 0.1, 256, None),
        (A100, 0.0, 257, "head size 257 is above 256"),
        (Hardware("cuda", "float32", (8, 0)), 0.0, 64, "float32, and the flash kernel takes bfloat16 and float16"),
        (T4, 0.0, 64, "compute capability 7.5 is not between 8.0 and 12.1"),
        (Hardware("cuda", "bfloat16", (13, 0)), 0.0, 64, "compute capability 13.0 is not between 8.0 and 12.1"),
        (RTX_4090, 0.0, 192, None),
        (RTX_4090, 0.0, 193, "head size 193 does not train on compute capability 8.9"),
        (RTX_4090, 0.0, 225, None),
        (RTX_4090, 0.1, 225, "head size 225 does not train on compute capability 8.9"),
        (CPU, 0.0, 768, None),
        (CPU, 0.1, 64, "dropout takes the math kernel on the CPU"),
    ],
)
def test_flash_is_refused_for_a_reason(hardware: Hardware, dropout: float, head_dim: int, says: str | None) -> None:
    reason = unsupported_reason("flash", head_dim, dropout, hardware)
    assert (reason is None) == (says is None)
    assert (says or "") in (reason or "")


@pytest.mark.parametrize(
    ("hardware", "multiple"),
    [
        (A100, 8),
        (Hardware("cuda", "float32", (8, 0)), 4),
        (T4, 8),
        (Hardware("cuda", "float32", (7, 5)), 1),
        (Hardware("cuda", "float16", (6, 1)), 1),
    ],
)
def test_the_efficient_kernel_takes_multiples(hardware: Hardware, multiple: int) -> None:
    taken = [size for size in range(1, 25) if unsupported_reason("efficient", size, 0.0, hardware) is None]
    assert taken == [size for size in range(1, 25) if size % multiple == 0]


def test_metal_and_the_cpu_say_what_they_lack() -> None:
    (metal,) = layer_kernels(ModelConfig(n_layer=1), Hardware("mps", "float16"), "auto")
    assert (metal.kernel, metal.reason) == ("metal", "Metal has one attention kernel of its own")
    (cpu,) = layer_kernels(ModelConfig(n_layer=1), CPU, "efficient")
    assert (cpu.kernel, cpu.reason) == ("math", "the CPU has a flash and a math kernel only")


def test_equal_reasons_are_reported_together() -> None:
    model = ModelConfig(n_layer=6, n_head_list=(2, 2, 2, 12, 1, 2), n_embd=768)
    told = fallback_summary(layer_kernels(model, A100, "auto"))
    assert told == "layers 0-2, 5: head size 384 is above 256; layer 4: head size 768 is above 256"
    assert fallback_summary(layer_kernels(ModelConfig(), A100, "flash")) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("head_dim", "dropout"), [(1, 0.0), (64, 0.0), (384, 0.0), (768, 0.0), (64, 0.1)])
def test_flash_on_this_cpu_is_as_reported(dtype: str, head_dim: int, dropout: float) -> None:
    heads = torch.randn(3, 1, 2, 8, head_dim, dtype=getattr(torch, dtype), requires_grad=True)  # three (B, H, T, D)
    told = unsupported_reason("flash", head_dim, dropout, Hardware("cpu", dtype))
    assert takes_flash(heads, dropout) == (told is None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("head_dim", [1, 3, 8, 20, 64, 128, 192, 200, 224, 256, 384, 768])
def test_kernels_on_this_gpu_are_as_reported(dtype: str, dropout: float, head_dim: int) -> None:
    hardware = Hardware("cuda", dtype, torch.cuda.get_device_capability())
    heads = torch.randn(3, 1, 2, 128, head_dim, dtype=getattr(torch, dtype), device="cuda", requires_grad=True)
    facts = torch.backends.cuda.SDPAParams(*heads, None, dropout, True, False)
    told = [unsupported_reason(kernel, head_dim, dropout, hardware) is None for kernel in ("flash", "efficient")]
    can_use = [torch.backends.cuda.can_use_flash_attention, torch.backends.cuda.can_use_efficient_attention]
    assert told == [can(facts) for can in can_use]
