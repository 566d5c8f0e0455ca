"""Trainings of the quickstart model: the share of the probe of heads, and an ablation beside its quote."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.table import Row

from model_core.attention.heads.ablation_record import AblationOptions
from model_core.storage.events import read_events
from model_core.storage.files import Layout
from service.ablations import quote

REPOSITORY = Path(__file__).parents[2]
PROBE_PROGRAM = REPOSITORY / "bench" / "child" / "probe_share.py"
CONFIG = REPOSITORY / "configs" / "quickstart.yaml"
STEPS, DENSE_EVERY = 1200, 96  # 96 steps train 32 times the tokens of the probe, so it is read at every validation
DEFAULTS_PERCENT, DENSE_PERCENT, QUOTE_FACTOR = 1.0, 2.0, 2.0
# nothing else takes time, so that the share of the probe is the largest possible
DENSE = (
    f"evaluation.val_loss_every={DENSE_EVERY}", "evaluation.val_max_steps=1",
    *(f"evaluation.{name}_every=100000" for name in ("sample", "checkpoint")),
)  # fmt: skip


def probe(rounds: int, *, quick: bool) -> Iterator[Row]:
    """Measure the share of the probe in whole trainings, and the same trainings without it in turns.

    Args:
        rounds: Pairs of trainings with a reading wherever one is due; one pair is trained with the defaults.
        quick: Trains a few steps.

    Yields:
        The rows.
    """
    steps = 4 if quick else STEPS
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        _train(data, "first", steps=1)  # prepares the dataset
        yield from _share_rows(data, "defaults", (), steps, 1, DEFAULTS_PERCENT)
        yield from _share_rows(data, "dense", DENSE, min(steps, 4 * DENSE_EVERY), rounds, DENSE_PERCENT)


def ablation_quote(*, quick: bool) -> Iterator[Row]:
    """Compare the quote of an ablation, from the speed of its run's training, with the time of its job.

    Args:
        quick: Trains a few steps, and ablates with a small sample.

    Yields:
        The row.
    """
    with tempfile.TemporaryDirectory() as directory:
        data, wanted = Path(directory), AblationOptions(tokens=512 if quick else 16_384)
        _train(data, "ablated", steps=4 if quick else 200)
        quoted = quote(Layout.under(data), "ablated", wanted)
        assert quoted.seconds is not None
        job = [
            "-m", "model_core.attention.heads.ablation_job", "--config", str(CONFIG), "--run", "ablated",
            "--data-root", str(data), "--record", str(data / "job"), "--options", wanted.model_dump_json(),
        ]  # fmt: skip
        _run(job)
        took = float(next(event for event in read_events(data / "job" / "events.jsonl", types={"end"}))["seconds"])
        low, high = quoted.seconds
        ratio = took / math.sqrt(low * high)
        what = "ablation: seconds, and quoted"
        yield Row(what, f"{took:.1f} s", f"{low:.1f} to {high:.1f} s", max(ratio, 1 / ratio), QUOTE_FACTOR)


def _share_rows(
    data: Path, name: str, settings: Sequence[str], steps: int, rounds: int, percent: float
) -> Iterator[Row]:
    turns = []
    for turn in range(rounds):
        order = (True, False) if turn % 2 else (False, True)
        turns.append({on: _train(data, f"{name}-{turn}-{on}", settings, steps=steps, probed=on) for on in order})
    shares = [100 * sum(turn[True]["readings_s"]) / turn[True]["wall_s"] for turn in turns]
    readings = [seconds for turn in turns for seconds in turn[True]["readings_s"]]
    on, off = ([turn[is_on]["cpu_s"] for turn in turns] for is_on in (True, False))
    what = f"probe, {name}: share of {steps:,} steps ({min(shares):.2f}-{max(shares):.2f})"
    one = f"{1000 * statistics.median(readings):,.0f} ms each"
    yield Row(what, one, f"{len(readings) // rounds} readings", statistics.median(shares), percent, unit="%")
    ratios = [with_it / without for with_it, without in zip(on, off, strict=True)]
    shown = (f"{statistics.median(values):,.1f} s" for values in (on, off))
    what = f"probe, {name}: CPU on / off ({min(ratios):.3f}-{max(ratios):.3f})"
    yield Row(what, *shown, statistics.median(ratios), None)


def _train(data: Path, name: str, settings: Sequence[str] = (), *, steps: int, probed: bool = True) -> dict[str, Any]:
    changed = [
        *settings, f"training.max_steps={steps}", f"training.warmup_steps={min(40, steps - 1)}",
        "execution.test=false", f"evaluation.head_statistics={str(probed).lower()}",
    ]  # fmt: skip
    arguments = ["--config", str(CONFIG), "--data-root", str(data), "--run", name]
    printed = _run([str(PROBE_PROGRAM), *arguments, *(word for setting in changed for word in ("--set", setting))])
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return figures


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout
