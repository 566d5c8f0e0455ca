"""Comparison of a configuration's costs with those of the uniform baseline, as JSON, Markdown or tables.

`headcount report`, `GET /runs/{run}/report` and `POST /jobs?validate_only=true` use this module and `budget.py`, so
their numbers agree. `preflight` compares the requirements of a run with the machine before the first step.
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
    """A table of text whose first column names the row.

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
    """Costs of a configuration and of its uniform baseline.

    Attributes:
        experiment_name: Name of the experiment.
        budget: Costs of the configuration.
        uniform: Costs of the same experiment with equal head counts.
        warnings: Warnings of the configuration.
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
            Tables of the layers, the totals and those of the uniform model, the memory, and the length and disk.
        """
        return (_layer_table(self), _totals_table(self), _memory_table(self), _length_table(self))

    def remarks(self) -> Iterator[str]:
        """Write the remarks below the tables.

        Yields:
            Sentences without Markdown.
        """
        if saves_nothing(self.budget, self.uniform):
            yield NO_SAVING
        if not all(layer.flash for layer in self.budget.layers):
            yield "flash no: PyTorch's fused kernel on a GPU takes head sizes up to 256; a slower one takes its place."
        yield from (f"warning: {warning.detail}" for warning in self.warnings)

    def to_markdown(self) -> str:
        """Format the report as a Markdown page.

        Returns:
            Markdown text.
        """
        tables = [f"## {table.title}\n\n{_format_markdown(table)}" for table in self.tables()]
        formulas = [f"- {what} = `{formula}`" for what, formula in self.budget.formulas.items()]
        parts = [f"# {self.experiment_name}", *tables, *self.remarks(), "## Formulas", "\n".join(formulas)]
        return "\n\n".join(parts) + "\n"


def build_report(parsed: ParsedConfig, dataset: Dataset) -> Report:
    """Compute the costs of a configuration and of its uniform baseline.

    Args:
        parsed: The configuration and its warnings.
        dataset: Dataset of the configuration; epochs are computed only if it is prepared.

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
    except (OSError, ValueError, EOFError):  # the training itself reports the error
        return None


def preflight(config: ExperimentConfig, dataset: Dataset, run: Path, emit: Callable[..., Any]) -> None:
    """Log the length of a run in steps, tokens and epochs, and warn if the disk may fill up.

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
    """Warn if the checkpoints of a run may not fit on the disk. Free space changes, so this is not an error.

    Args:
        disk: Size of the checkpoints.
        run: Directory of the run, which need not exist. Its existing checkpoints are subtracted.

    Yields:
        At most one warning.
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


def _layer_table(report: Report) -> Table:
    head = ("layer", "heads", "head_dim", "parameters", "KV bytes per token", "FLOPs per token", "softmax", "flash")
    embeddings = ("embed", "", "", f"{report.budget.embedding_parameters:,}", "", "", "", "")
    rows = tuple(_layer_row(layer) for layer in report.budget.layers)
    return Table(f"{report.experiment_name}: layers", head, (*rows, embeddings))


def _layer_row(layer: LayerBudget) -> tuple[str, ...]:
    numbers = (
        layer.layer, layer.n_head, layer.head_dim, layer.parameters, layer.kv_bytes_per_token, layer.flops_per_token,
        layer.softmax_elements,
    )  # fmt: skip
    return (*(f"{number:,}" for number in numbers), "yes" if layer.flash else "no")


def _totals_table(report: Report) -> Table:
    budget, uniform = report.budget, report.uniform
    heads = {layer.n_head for layer in budget.layers}
    column = f"this ({heads.pop() if len(heads) == 1 else 'unequal'} heads)"
    rows = (
        _comparison_row("parameters", budget.parameters, uniform.parameters),
        _comparison_row("KV bytes per token (bf16)", budget.kv_bytes_per_token, uniform.kv_bytes_per_token),
        _comparison_row("FLOPs per token", budget.flops_per_token, uniform.flops_per_token),
        _comparison_row("softmax elements per sequence", budget.softmax_elements, uniform.softmax_elements),
        _comparison_row(
            "training memory on a CPU, MiB", _mib(budget.memory.total_bytes), _mib(uniform.memory.total_bytes)
        ),
        _comparison_row("checkpoints on disk, MiB", _mib(budget.disk.total_bytes), _mib(uniform.disk.total_bytes)),
    )
    head = ("", column, f"uniform ({uniform.layers[0].n_head} heads)", "change")
    return Table("beside the uniform model", head, rows)


def _comparison_row(label: str, value: int, uniform: int) -> tuple[str, str, str, str]:
    change = 100 * (value - uniform) / uniform if uniform else 0.0
    return label, f"{value:,}", f"{uniform:,}", "same" if value == uniform else f"{change:+.1f} %"


def _memory_table(report: Report) -> Table:
    memory = report.budget.memory
    parts = {
        "process after import": memory.base_bytes,
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "logits and cross entropy": memory.logits_bytes,
        "attention weights (dropout)": memory.attention_bytes,
        "total": memory.total_bytes,
        "required, with a margin": memory.required_bytes,
    }
    rows = tuple((part, f"{_mib(size):,}") for part, size in parts.items())
    return Table("memory of a training step on a CPU, MiB", ("part", "MiB"), rows)


def _length_table(report: Report) -> Table:
    schedule, disk = report.budget.schedule, report.budget.disk
    known = schedule.epochs is not None
    rows = (
        ("steps", f"{schedule.steps:,}"),
        ("micro batches per step", f"{schedule.accumulation:,}"),
        ("tokens", f"{schedule.tokens:,}"),
        ("tokens of the dataset", f"{schedule.train_tokens:,}" if known else "unknown: it is not prepared here"),
        ("epochs", f"{schedule.epochs:,.2f}" if known else "unknown"),
        ("full state, MiB", f"{_mib(disk.full_state_bytes):,}"),
        ("weights alone, MiB", f"{_mib(disk.weights_bytes):,}"),
        ("checkpoints, at most, MiB", f"{_mib(disk.total_bytes):,}"),
    )
    return Table("length and disk", ("", ""), rows)


def _mib(size_bytes: int) -> int:
    return size_bytes // _MIB


def _format_markdown(table: Table) -> str:
    rule = ("---", *("---:" for _ in table.head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.head, rule, *table.rows))
