"""How fast a GPU trains baseline.yaml's model, one acceleration after the other.

    make bench NAME=gpu

Random tokens, a minute a rung. Each rung keeps what the ones above it turned on, and the last is what a run does. Then
variable_heads and its narrow form beside the baseline, and the five most expensive kernels of ten steps. A line whose
compiler failed was taken without one, and ends with `compile_failed`. Without a GPU it exits 2;
`--device cpu --seconds 1 --set model.n_layer=3 --set model.n_embd=24 ...` shows that it works.
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
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from parts.steps import BASELINE, Emit, median_seconds, resident_mib, state_of
from torch import Tensor

from model_core.budget import budget_of
from model_core.config import ExperimentConfig
from model_core.config_loader import load_config
from model_core.errors import OutOfMemory
from model_core.gpt import GPT, Forward
from model_core.hardware.throughput import peak_flops
from model_core.optim import make_optimizer
from model_core.training.setup import with_eager_fallback
from model_core.training.trainer import TrainState, take_step

TARGET = 460_000  # tokens a second of 124M at T=1024 on an H200
HEADS = (12, 8, 6)  # of variable_heads: a third of the layers each
PROFILED_STEPS, KERNELS = 10, 5


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what is on there."""

    name: str
    dtype: str = "float32"
    tf32: bool = False
    attention: str = "math"
    compiled: bool = False
    fused: bool = False
    chunked: bool = False

    def settings(self) -> list[str]:
        """As keys of a configuration."""
        return [
            f"device.dtype={self.dtype}", f"device.tf32={str(self.tf32).lower()}",
            f"device.attention_backend={self.attention}", f"execution.use_compile={str(self.compiled).lower()}",
        ]  # fmt: skip


def ladder() -> list[Rung]:
    """From nothing to everything."""
    rungs = [Rung("float32")]
    for name, changes in {
        "TF32": {"tf32": True},
        "bfloat16": {"dtype": "bfloat16"},
        "flash": {"attention": "auto"},
        "compile": {"compiled": True},
        "fused AdamW": {"fused": True},
        "chunked cross entropy": {"chunked": True},
    }.items():
        rungs.append(replace(rungs[-1], name=name, **changes))
    return rungs


class Warnings:
    """What a training warned of, for the end of its line: a figure of another thing than the line says is no figure."""

    def __init__(self) -> None:
        self._heard: list[str] = []

    def __call__(self, kind: str, **facts: object) -> None:
        """Listen as a run's events are listened to."""
        if kind == "warning":
            self._heard.append(f"{facts.get('code')}: {' '.join(str(facts.get('detail')).split())}")

    def told(self) -> str:
        """All of it, or nothing."""
        return "".join(f"  {warning}" for warning in self._heard)


def prepare(rung: Rung, settings: Sequence[str], directory: Path, emit: Emit) -> TrainState:
    """A training about to begin, with what the rung has not turned on put back; `emit` is told as by a run."""
    state = state_of([*settings, *rung.settings()], directory, emit)
    if not rung.fused:
        state.optimizer = make_optimizer(state.model, state.config.training, fused=False)
    if not rung.chunked:
        whole = _all_logits(state.model)
        mode = state.runtime.compile_mode
        state.forward = with_eager_fallback(torch.compile(whole, mode=mode), whole, emit) if mode else whole
    return state


def _all_logits(model: GPT) -> Forward:
    def forward(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits = model(idx)[0]  # (B, T, V)
        return None, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return forward


def row(name: str, state: TrainState, seconds: float) -> str:
    """Tokens a second, MFU and memory of a training."""
    runtime, tokens = state.runtime, state.config.training.total_batch_size
    if runtime.device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    speed = tokens / median_seconds(lambda: take_step(state), seconds)
    peak = peak_flops(runtime.gpu.name, runtime.dtype, tf32=runtime.tf32) if runtime.gpu else None
    mfu = f"{speed * budget_of(state.config).flops_per_token / peak:.2f}" if peak else "-"
    used = torch.cuda.max_memory_allocated() / 2**20 if runtime.device_type == "cuda" else resident_mib("VmHWM")
    return f"{name:<28}{speed:>12,.0f}{tokens / speed * 1000:>12,.1f}{mfu:>8}{used:>12,.0f}"


def rows(settings: Sequence[str], seconds: float, directory: Path) -> Iterator[str]:
    """The ladder, then the shapes with everything on."""
    rungs = ladder()
    for rung in rungs:
        yield line_of(rung, rung.name, settings, seconds, directory)
    unequal = _unequal(load_config(BASELINE, settings).model.n_layer)
    for name, shape in {"variable_heads": [unequal], "... head_dim 64": [unequal, "model.head_dim=64"]}.items():
        yield line_of(rungs[-1], name, [*settings, *shape], seconds, directory)


def _unequal(layers: int) -> str:
    return f"model.n_head_list={[HEADS[len(HEADS) * layer // layers] for layer in range(layers)]}"


def line_of(rung: Rung, name: str, settings: Sequence[str], seconds: float, directory: Path) -> str:
    """A line of the table: figures, or that memory ran out; and what the training warned of."""
    gc.collect()  # the rung before gives its memory back
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings = Warnings()
    try:
        return row(name, prepare(rung, settings, directory, warnings), seconds) + warnings.told()
    except OutOfMemory as error:
        return f"{name:<28}{'out of memory':>12}: {error}{warnings.told()}"


def kernels(settings: Sequence[str], directory: Path) -> Iterator[str]:
    """The most expensive kernels of a micro batch's steps, with their share of the time."""
    last = ladder()[-1]
    one = _one_micro_batch(state_of(settings, directory).config)
    warnings = Warnings()
    state = prepare(last, [*settings, one], directory, warnings)
    take_step(state)
    if warnings.told():
        yield warnings.told().strip()
    on_gpu = state.runtime.device_type == "cuda"
    watched = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=watched) as profile:
        for _ in range(PROFILED_STEPS):
            take_step(state)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = sorted(profile.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in found) or 1
    for event in found[:KERNELS]:
        yield f"{100 * getattr(event, key) / total:5.1f} %  {event.key[:100]}"


def _one_micro_batch(config: ExperimentConfig) -> str:
    return f"training.total_batch_size={config.training.batch_size * config.training.sequence_length}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ladder; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a rung")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: this bench needs an NVIDIA GPU, and none is visible", file=sys.stderr)
        return 2
    settings = [*arguments.settings, f"device.device={arguments.device}"]
    print(torch.cuda.get_device_name() if arguments.device == "cuda" else "a CPU, to see that the bench works")
    print(f"{'':<28}{'tokens/s':>12}{'ms a step':>12}{'MFU':>8}{'memory, MiB':>12}")
    with tempfile.TemporaryDirectory() as directory:
        for line in rows(settings, arguments.seconds, Path(directory)):
            print(line, flush=True)
        print(f"\nmost expensive of {PROFILED_STEPS} steps of one micro batch")
        for line in kernels(settings, Path(directory)):
            print(line)
    print(f"\ntarget on an H200: {TARGET:,} tokens/s for 124M at T=1024")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
