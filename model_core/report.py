"""The costs of a configuration beside those of the uniform model, as JSON, Markdown or tables.

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

from model_core.budget import Budget, DiskBudget, LayerBudget, compute_budget, saves_nothing, uniform_baseline
from model_core.config import ExperimentConfig
from model_core.config_loader import ConfigWarning, ParsedConfig
from model_core.storage.dataset import Dataset

NO_SAVING = (
    "At this n_embd the heads share the width, so the number of heads changes neither parameters nor KV bytes nor "
    "matmul FLOPs; only the softmax gets smaller. Set model.head_dim to save."
)

_MIB, _GIB = 1 << 20, 1 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row.

    Attributes:
        title: Title of the table.
        head: Titles of the columns.
        rows: Cells of each row.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """What one configuration costs.

    Attributes:
        experiment_name: Name of the experiment.
        budget: Its costs.
        uniform: Costs of the same experiment with equal heads.
        warnings: What its author should know.
    """

    experiment_name: str
    budget: Budget
    uniform: Budget
    warnings: tuple[ConfigWarning, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON.

        Returns:
            Values by field.
        """
        return asdict(self)

    def tables(self) -> tuple[Table, ...]:
        """Build the tables.

        Returns:
            Layers, totals beside the uniform model, memory, and length and disk.
        """
        return (_layers(self), _totals(self), _memory(self), _length(self))

    def remarks(self) -> Iterator[str]:
        """Write the sentences below the tables.

        Returns:
            The sentences, without Markdown.
        """
        if saves_nothing(self.budget, self.uniform):
            yield NO_SAVING
        if not all(layer.flash for layer in self.budget.layers):
            yield "flash no: PyTorch's fused kernel on a GPU takes head sizes up to 256; a slower one takes its place."
        yield from (f"warning: {warning.detail}" for warning in self.warnings)

    def to_markdown(self) -> str:
        """Write the report as a page.

        Returns:
            Markdown text.
        """
        tables = [f"## {table.title}\n\n{_markdown(table)}" for table in self.tables()]
        formulas = [f"- {what} = `{formula}`" for what, formula in self.budget.formulas.items()]
        parts = [f"# {self.experiment_name}", *tables, *self.remarks(), "## Formulas", "\n".join(formulas)]
        return "\n\n".join(parts) + "\n"


def build_report(parsed: ParsedConfig, dataset: Dataset) -> Report:
    """Compute what a configuration costs, and what its uniform baseline would.

    Args:
        parsed: The configuration and its warnings.
        dataset: Its dataset; if it is prepared, its size gives the epochs.

    Returns:
        The report.
    """
    tokens = count_train_tokens(dataset)
    budget, uniform = (compute_budget(c, train_tokens=tokens) for c in (parsed.config, uniform_baseline(parsed.config)))
    return Report(parsed.config.experiment_name, budget, uniform, parsed.warnings)


def count_train_tokens(dataset: Dataset) -> int | None:
    """Count the tokens of a training split.

    Args:
        dataset: The dataset.

    Returns:
        Number of tokens; None if the split is missing or not a token file.
    """
    manifest = dataset.manifest()
    if manifest is not None:
        return int(manifest["splits"]["train"]["tokens"]) or None
    try:
        return int(np.load(dataset.train, mmap_mode="r", allow_pickle=False).size) or None
    except (OSError, ValueError, EOFError):  # a training reports what is wrong
        return None


def preflight(config: ExperimentConfig, dataset: Dataset, run: Path, emit: Callable[..., Any]) -> None:
    """Log the length of a run in steps, tokens and epochs, and warn if the disk may become full.

    Args:
        config: Resolved configuration.
        dataset: Prepared dataset.
        run: Directory of the run.
        emit: Writes a ``warning`` event.
    """
    budget = compute_budget(config, train_tokens=count_train_tokens(dataset))
    length = budget.schedule
    log.info("planned steps=%d tokens=%d epochs=%.2f", length.steps, length.tokens, length.epochs or 0.0)
    for warning in disk_shortage(budget.disk, run):
        emit("warning", code=warning.code, detail=warning.detail)


def disk_shortage(disk: DiskBudget, run: Path) -> Iterator[ConfigWarning]:
    """Warn if the checkpoints of a run may not fit on the disk. Other writers may fill it too, so it is no error.

    Args:
        disk: Size of the checkpoints.
        run: Directory of the run, which need not exist. Its checkpoints are not counted again.

    Returns:
        The warning, if there is one.
    """
    existing = run = run.absolute()
    while not existing.is_dir():
        existing = existing.parent
    free, needed = shutil.disk_usage(existing).free, disk.total_bytes
    if needed > free:
        needed -= sum(file.stat().st_size for file in run.glob("model_*.pt"))
    if needed > free:
        yield ConfigWarning(
            "disk_low",
            f"the checkpoints of this run need up to {needed / _GIB:,.1f} GiB and {free / _GIB:,.1f} GiB are free; "
            "make room, or lower evaluation.max_checkpoints_to_keep",
        )


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
