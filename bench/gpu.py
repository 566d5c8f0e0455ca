"""Training speed of baseline.yaml's model on a GPU, with one more acceleration in each row.

    make bench NAME=gpu

Random tokens, a minute per row. A row keeps the accelerations of the rows above it, and the last of them equals a run.
Then follow variable_heads and its variant with head_dim 64, and the five most expensive kernels of ten steps. A row
whose compilation failed was measured without it, and ends with `compile_failed`. Exits 2 without a GPU;
`--device cpu --seconds 1 --set model.n_layer=3 --set model.n_embd=24 ...` is a quick trial.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from harness.training_steps import BASELINE, Emit, median_seconds, resident_mib, state_of
from torch import Tensor

from model_core.budget import compute_budget
from model_core.config import ExperimentConfig
from model_core.config_loader import load_config
from model_core.errors import OutOfMemory
from model_core.gpt import GPT, Forward
from model_core.hardware.throughput import peak_flops
from model_core.optim import make_optimizer
from model_core.training.setup import with_eager_fallback
from model_core.training.trainer import TrainState, take_step

TARGET = 460_000  # tokens/s of 124M at T=1024 on an H200
HEADS = (12, 8, 6)  # of variable_heads, for a third of the layers each
PROFILED_STEPS, KERNELS = 10, 5


@dataclass(frozen=True)
class Stage:
    """A row of the table: the accelerations that are on."""

    name: str
    dtype: str = "float32"
    tf32: bool = False
    attention: str = "math"
    compiled: bool = False
    fused: bool = False
    chunked: bool = False

    def settings(self) -> list[str]:
        """Configuration keys of this stage."""
        return [
            f"device.dtype={self.dtype}", f"device.tf32={str(self.tf32).lower()}",
            f"device.attention_backend={self.attention}", f"execution.use_compile={str(self.compiled).lower()}",
        ]  # fmt: skip


def stages() -> list[Stage]:
    """List the stages, from plain float32 to all accelerations."""
    chain = [Stage("float32")]
    for name, changes in {
        "TF32": {"tf32": True},
        "bfloat16": {"dtype": "bfloat16"},
        "flash": {"attention": "auto"},
        "compile": {"compiled": True},
        "fused AdamW": {"fused": True},
        "chunked cross entropy": {"chunked": True},
    }.items():
        chain.append(replace(chain[-1], name=name, **changes))
    return chain


class Warnings:
    """Collects the warnings of a training for the end of its row, since a warning may change what was measured."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def __call__(self, kind: str, **fields: object) -> None:
        """Receive an event of the training."""
        if kind == "warning":
            self._texts.append(f"{fields.get('code')}: {' '.join(str(fields.get('detail')).split())}")

    def text(self) -> str:
        """Join the warnings; empty without any."""
        return "".join(f"  {warning}" for warning in self._texts)


def prepare(stage: Stage, settings: Sequence[str], directory: Path, emit: Emit) -> TrainState:
    """Build a training state, and undo the accelerations that the stage lacks; `emit` receives its events."""
    state = state_of([*settings, *stage.settings()], directory, emit)
    if not stage.fused:
        state.optimizer = make_optimizer(state.model, state.config.training, fused=False)
    if not stage.chunked:
        whole = _all_logits(state.model)
        mode = state.runtime.compile_mode
        state.forward = with_eager_fallback(torch.compile(whole, mode=mode), whole, emit) if mode else whole
    return state


def row(name: str, state: TrainState, seconds: float) -> str:
    """Measure tokens per second, MFU and memory of a training."""
    runtime, tokens = state.runtime, state.config.training.total_batch_size
    if runtime.device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    speed = tokens / median_seconds(lambda: take_step(state), seconds)
    peak = peak_flops(runtime.gpu.name, runtime.dtype, tf32=runtime.tf32) if runtime.gpu else None
    mfu = f"{speed * compute_budget(state.config).flops_per_token / peak:.2f}" if peak else "-"
    used = torch.cuda.max_memory_allocated() / 2**20 if runtime.device_type == "cuda" else resident_mib("VmHWM")
    return f"{name:<28}{speed:>12,.0f}{tokens / speed * 1000:>12,.1f}{mfu:>8}{used:>12,.0f}"


def rows(settings: Sequence[str], seconds: float, directory: Path) -> Iterator[str]:
    """Measure the stages, then the unequal models with all accelerations."""
    chain = stages()
    for stage in chain:
        yield measured_row(stage, stage.name, settings, seconds, directory)
    unequal = _unequal(load_config(BASELINE, settings).model.n_layer)
    for name, shape in {"variable_heads": [unequal], "... head_dim 64": [unequal, "model.head_dim=64"]}.items():
        yield measured_row(chain[-1], name, [*settings, *shape], seconds, directory)


def measured_row(stage: Stage, name: str, settings: Sequence[str], seconds: float, directory: Path) -> str:
    """Measure a row: figures, or an out-of-memory error, and the warnings."""
    gc.collect()  # frees the memory of the previous stage
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings = Warnings()
    try:
        return row(name, prepare(stage, settings, directory, warnings), seconds) + warnings.text()
    except OutOfMemory as error:
        return f"{name:<28}{'out of memory':>12}: {error}{warnings.text()}"


def kernels(settings: Sequence[str], directory: Path) -> Iterator[str]:
    """Profile steps of one micro batch: the most expensive kernels, with their share of the time."""
    last = stages()[-1]
    one = _one_micro_batch(state_of(settings, directory).config)
    warnings = Warnings()
    state = prepare(last, [*settings, one], directory, warnings)
    take_step(state)
    if warnings.text():
        yield warnings.text().strip()
    on_gpu = state.runtime.device_type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_STEPS):
            take_step(state)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in events) or 1
    for event in events[:KERNELS]:
        yield f"{100 * getattr(event, key) / total:5.1f} %  {event.key[:100]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of a row")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: this benchmark needs an NVIDIA GPU, and none is visible", file=sys.stderr)
        return 2
    settings = [*arguments.settings, f"device.device={arguments.device}"]
    print(torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU: a trial of the benchmark")
    print(f"{'':<28}{'tokens/s':>12}{'ms per step':>12}{'MFU':>8}{'memory, MiB':>12}")
    with tempfile.TemporaryDirectory() as directory:
        for line in rows(settings, arguments.seconds, Path(directory)):
            print(line, flush=True)
        print(f"\nmost expensive of {PROFILED_STEPS} steps of one micro batch")
        for line in kernels(settings, Path(directory)):
            print(line)
    print(f"\ntarget on an H200: {TARGET:,} tokens/s for 124M at T=1024")
    return 0


def _all_logits(model: GPT) -> Forward:
    def forward(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits = model(idx)[0]  # (B, T, V)
        return None, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return forward


def _unequal(layers: int) -> str:
    return f"model.n_head_list={[HEADS[len(HEADS) * layer // layers] for layer in range(layers)]}"


def _one_micro_batch(config: ExperimentConfig) -> str:
    return f"training.total_batch_size={config.training.batch_size * config.training.sequence_length}"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
