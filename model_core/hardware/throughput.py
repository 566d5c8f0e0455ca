"""Throughput of a training: tokens per second, share of time spent waiting for data, and MFU.

MFU, model FLOPs utilization (Chowdhery et al., "PaLM", 2022, appendix B), is the ratio of the model's FLOPs, by the
formula of `budget.py`, to the published peak of the GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_MIG = re.compile(r"\bMIG\b")

# Dense peaks in TFLOP/s as (bfloat16 and float16 with float32 sums, TF32, float32), None without such units. Sources:
# NVIDIA's data sheets of V100, T4, A10, A100, L4, L40S, H100, H200 and HGX B200, halved if they count sparse matmuls;
# AWS for A10G; the GA102 and Ada architecture papers for the RTX cards. The first pattern that matches counts.
_PEAKS: tuple[tuple[str, tuple[float, float | None, float]], ...] = (
    (r"B200", (2250.0, 1125.0, 75.0)),
    (r"H200 NVL", (835.5, 417.5, 60.0)),
    (r"H200", (989.4, 494.7, 66.9)),
    (r"H100 PCIe", (756.0, 378.0, 51.0)),
    (r"H100 NVL", (835.5, 417.5, 60.0)),
    (r"H100", (989.4, 494.7, 66.9)),
    (r"A100", (312.0, 156.0, 19.5)),
    (r"A10G", (70.0, 35.0, 31.5)),
    (r"A10", (125.0, 62.5, 31.2)),
    (r"L40S", (362.0, 183.0, 91.6)),
    (r"L4", (121.0, 60.0, 30.3)),
    (r"RTX A6000", (154.8, 77.4, 38.7)),
    (r"RTX 4090(?! (?:Laptop|D))", (165.2, 82.6, 82.6)),
    (r"RTX 3090(?! Ti)", (71.0, 35.6, 35.6)),
    (r"V100", (125.0, None, 15.7)),
    (r"T4", (65.0, None, 8.1)),
)


@dataclass
class ThroughputMeter:
    """Accumulates the steps of this process.

    Attributes:
        tokens: Tokens trained on.
        seconds: Time of the steps.
        waiting_s: Part of that time spent waiting for the loader.
    """

    tokens: int = 0
    seconds: float = 0.0
    waiting_s: float = 0.0

    def add(self, tokens: int, seconds: float, waiting_s: float) -> None:
        """Add one step.

        Args:
            tokens: Tokens of the step.
            seconds: Its time.
            waiting_s: Part of that time spent waiting for the loader.
        """
        self.tokens, self.seconds, self.waiting_s = (
            self.tokens + tokens,
            self.seconds + seconds,
            self.waiting_s + waiting_s,
        )


def peak_flops(gpu: str, dtype: str, *, tf32: bool) -> float | None:
    """Look up the published dense peak of a GPU.

    Args:
        gpu: Name of the GPU, as the driver reports it.
        dtype: Number format of the matmuls.
        tf32: Whether float32 matmuls may round to TF32.

    Returns:
        FLOP/s; None if it is not known, as for a MIG slice.
    """
    if _MIG.search(gpu):
        return None
    half, rounded, full = next((peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", gpu)), (None, None, None))
    chosen = half if dtype != "float32" else rounded if tf32 else full
    return chosen * 1e12 if chosen is not None else None


def throughput_summary(
    meter: ThroughputMeter, flops_per_token: int, *, gpu: str | None, dtype: str, tf32: bool
) -> dict[str, Any]:
    """Summarize the throughput of a training for its `end` event.

    Args:
        meter: Measured steps.
        flops_per_token: FLOPs of the model, forward and backward.
        gpu: Name of the GPU; None on other devices.
        dtype: Number format of the matmuls.
        tf32: Whether float32 matmuls may round to TF32.

    Returns:
        ``tokens_per_s``, ``data_wait_share`` and ``mfu``, which is None with an ``mfu_reason`` if no peak is known.
    """
    if not meter.seconds:
        reason = "no step was taken"
        return {"tokens_per_s": None, "data_wait_share": None, "mfu": None, "mfu_reason": reason}
    tokens_per_s = meter.tokens / meter.seconds
    result: dict[str, Any] = {
        "tokens_per_s": round(tokens_per_s, 1),
        "data_wait_share": round(meter.waiting_s / meter.seconds, 4),
        "mfu": None,
    }
    if gpu is None:
        return {**result, "mfu_reason": "the peak of this device is not known; MFU is only reported for NVIDIA GPUs"}
    peak = peak_flops(gpu, dtype, tf32=tf32)
    if peak is None:
        return {**result, "mfu_reason": f"no published peak is on file for {gpu!r} in {dtype}"}
    return {**result, "mfu": round(tokens_per_s * flops_per_token / peak, 4)}
