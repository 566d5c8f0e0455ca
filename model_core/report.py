"""The cost of a configuration beside that of the uniform model, as JSON, Markdown or tables.

`headcount report`, `GET /runs/{run}/report` and `POST /jobs?validate_only=true` all use this module and `budget.py`, so
they cannot disagree. `preflight` compares the needs of a run with the machine before the first step.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_core.budget import Budget, DiskBudget, LayerBudget, budget_of, saves_nothing, uniform_baseline
from model_core.config import ExperimentConfig
from model_core.config_loader import ConfigWarning, ParsedConfig
from model_core.storage.dataset import Dataset

NO_SAVING = (
    "At this n_embd the heads share the width, so the number of heads changes neither parameters nor KV bytes nor "
    "matmul FLOPs; only the softmax gets smaller. Set model.head_dim to save."
)

_MIB = 1 << 20


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """What one configuration costs.

    Attributes:
        experiment_name: Whose.
        budget: Its own numbers.
        uniform: Those of the same experiment with equal heads.
        warnings: What its author should know.
    """

    experiment_name: str
    budget: Budget
    uniform: Budget
    warnings: tuple[ConfigWarning, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def tables(self) -> tuple[Table, ...]:
        """Layers, totals beside the uniform model, memory, length and disk."""
        return (_layers(self), _totals(self), _memory(self), _length(self))

    def remarks(self) -> Iterator[str]:
        """Sentences below the tables."""
        if saves_nothing(self.budget, self.uniform):
            yield NO_SAVING
        if not all(layer.flash for layer in self.budget.layers):
            yield "flash no: PyTorch's fused kernel on a GPU takes head sizes up to 256; a slower one takes its place."
        yield from (f"warning: {advice.detail}" for advice in self.warnings)

    def to_markdown(self) -> str:
        """As a page for people."""
        tables = [f"## {table.title}\n\n{_markdown(table)}" for table in self.tables()]
        formulas = [f"- {what} = `{formula}`" for what, formula in self.budget.formulas.items()]
        parts = [f"# {self.experiment_name}", *tables, *self.remarks(), "## Formulas", "\n".join(formulas)]
        return "\n\n".join(parts) + "\n"


def report_of(parsed: ParsedConfig, dataset: Dataset) -> Report:
    """Count what a configuration costs, and what the uniform model would.

    Args:
        parsed: The configuration.
        dataset: Its dataset; where that is prepared its size gives the epochs.
    """
    tokens = train_tokens_of(dataset)
    budget, uniform = (budget_of(c, train_tokens=tokens) for c in (parsed.config, uniform_baseline(parsed.config)))
    return Report(parsed.config.experiment_name, budget, uniform, parsed.warnings)


def train_tokens_of(dataset: Dataset) -> int | None:
    """Tokens of the training split; None while it is not there, or is no token file."""
    manifest = dataset.manifest()
    if manifest is not None:
        return int(manifest["splits"]["train"]["tokens"]) or None
    try:
        return int(np.load(dataset.train, mmap_mode="r", allow_pickle=False).size) or None
    except (OSError, ValueError, EOFError):  # whoever trains on it says what is wrong
        return None


# --- tables ----------------------------------------------------------------------------------------------------------


def _layers(report: Report) -> Table:
    head = ("layer", "heads", "head_dim", "parameters", "KV bytes a token", "FLOPs a token", "softmax", "flash")
    embeddings = ("embed", "", "", f"{report.budget.embedding_parameters:,}", "", "", "", "")
    rows = tuple(_layer(layer) for layer in report.budget.layers)
    return Table(f"{report.experiment_name}: layers", head, (*rows, embeddings))


def _layer(layer: LayerBudget) -> tuple[str, ...]:
    numbers = (
        layer.layer, layer.n_head, layer.head_dim, layer.parameters, layer.kv_bytes_per_token, layer.flops_per_token,
        layer.softmax_elements,
    )  # fmt: skip
    return (*(f"{number:,}" for number in numbers), "yes" if layer.flash else "no")


def _totals(report: Report) -> Table:
    budget, uniform = report.budget, report.uniform
    heads = {layer.n_head for layer in budget.layers}
    here = f"this ({heads.pop() if len(heads) == 1 else 'unequal'} heads)"
    rows = (
        _beside("parameters", budget.parameters, uniform.parameters),
        _beside("KV bytes a token (bf16)", budget.kv_bytes_per_token, uniform.kv_bytes_per_token),
        _beside("FLOPs a token", budget.flops_per_token, uniform.flops_per_token),
        _beside("softmax elements a sequence", budget.softmax_elements, uniform.softmax_elements),
        _beside("training memory on a CPU, MiB", _mib(budget.memory.total_bytes), _mib(uniform.memory.total_bytes)),
        _beside("checkpoints on disk, MiB", _mib(budget.disk.total_bytes), _mib(uniform.disk.total_bytes)),
    )
    head = ("", here, f"uniform ({uniform.layers[0].n_head} heads)", "change")
    return Table("beside the uniform model", head, rows)


def _beside(label: str, value: int, uniform: int) -> tuple[str, str, str, str]:
    share = 100 * (value - uniform) / uniform if uniform else 0.0
    return label, f"{value:,}", f"{uniform:,}", "same" if value == uniform else f"{share:+.1f} %"


def _memory(report: Report) -> Table:
    memory = report.budget.memory
    parts = {
        "above import": memory.base_bytes,
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "logits and cross entropy": memory.logits_bytes,
        "attention weights (dropout)": memory.attention_bytes,
        "together": memory.total_bytes,
        "asked for, with a margin": memory.required_bytes,
    }
    rows = tuple((part, f"{_mib(size):,}") for part, size in parts.items())
    return Table("memory of a training step on a CPU, MiB", ("part", "MiB"), rows)


def _length(report: Report) -> Table:
    schedule, disk = report.budget.schedule, report.budget.disk
    known = schedule.epochs is not None
    rows = (
        ("steps", f"{schedule.steps:,}"),
        ("micro batches a step", f"{schedule.accumulation:,}"),
        ("tokens", f"{schedule.tokens:,}"),
        ("tokens of the dataset", f"{schedule.train_tokens:,}" if known else "unknown: it is not prepared here"),
        ("epochs", f"{schedule.epochs:,.2f}" if known else "unknown"),
        ("a full state, MiB", f"{_mib(disk.full_state_bytes):,}"),
        ("weights alone, MiB", f"{_mib(disk.weights_bytes):,}"),
        ("checkpoints, at most, MiB", f"{_mib(disk.total_bytes):,}"),
    )
    return Table("length and disk", ("", ""), rows)


def _mib(size_bytes: int) -> int:
    return size_bytes // _MIB


def _markdown(table: Table) -> str:
    rule = ("---", *("---:" for _ in table.head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.head, rule, *table.rows))


log = logging.getLogger(__name__)

_GIB = 1 << 30


def preflight(config: ExperimentConfig, dataset: Dataset, run: Path, emit: Callable[..., Any]) -> None:
    """Say how long the run will be, in steps, tokens and passes over the data, and warn of what may run out.

    Args:
        config: Resolved: max_steps is what will be done.
        dataset: Ready.
        run: Directory of the run.
        emit: Told ``warning``.
    """
    budget = budget_of(config, train_tokens=train_tokens_of(dataset))
    length = budget.schedule
    log.info("planned steps=%d tokens=%d epochs=%.2f", length.steps, length.tokens, length.epochs or 0.0)
    for advice in disk_shortage(budget.disk, run):
        emit("warning", code=advice.code, detail=advice.detail)


def disk_shortage(disk: DiskBudget, run: Path) -> Iterator[ConfigWarning]:
    """Warn when a run's checkpoints may not fit; other runs and datasets may fill the disk too, so it is no refusal.

    Args:
        disk: What the checkpoints need.
        run: Directory of the run, there or not yet. Checkpoints that lie there already are not counted again.
    """
    place = run = run.absolute()
    while not place.is_dir():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, disk.total_bytes
    if needed > free:
        needed -= sum(file.stat().st_size for file in run.glob("model_*.pt"))
    if needed > free:
        yield ConfigWarning(
            "disk_low",
            f"the checkpoints of this run need up to {needed / _GIB:,.1f} GiB and {free / _GIB:,.1f} GiB are free; "
            "make room, or lower evaluation.max_checkpoints_to_keep",
        )
