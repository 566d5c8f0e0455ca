"""`headcount report`: what a configuration costs, layer by layer, beside the uniform model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model_core.budget import FORMULAS, NO_SAVING, Budget, budget_of, comparison, saves_nothing, uniform_of
from model_core.config import ExperimentConfig
from model_core.loading import ParsedConfig, read_config
from model_core.records.dataset import dataset_of
from model_core.records.files import Layout

_MIB = 1 << 20


def report(file: str, overrides: Sequence[str]) -> Report:
    """Read a configuration and count.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: It is wrong.
    """
    parsed = read_config(file, overrides)
    tokens = _train_tokens(parsed.config)
    budget, uniform = (budget_of(c, train_tokens=tokens) for c in (parsed.config, uniform_of(parsed.config)))
    return Report(parsed, budget, uniform)


class Report:
    """The numbers of one configuration."""

    def __init__(self, parsed: ParsedConfig, budget: Budget, uniform: Budget) -> None:
        self.parsed, self.budget, self.uniform = parsed, budget, uniform

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "experiment_name": self.parsed.config.experiment_name,
            "budget": self.budget.to_dict(),
            "uniform": self.uniform.to_dict(),
            "warnings": [{"code": advice.code, "detail": advice.detail} for advice in self.parsed.warnings],
        }

    def print(self, console: Console) -> None:
        """Draw the tables."""
        name, budget = self.parsed.config.experiment_name, self.budget
        console.print(_layers(name, budget))
        console.print(_totals(budget, self.uniform))
        if saves_nothing(budget, self.uniform):
            console.print(NO_SAVING)
        console.print(_memory(budget))
        console.print(_length(budget))
        for advice in self.parsed.warnings:
            console.print(f"warning: {advice.detail}", markup=False)
        for what, formula in FORMULAS.items():
            console.print(f"{what} = {formula}", markup=False, highlight=False, style="dim")


def _train_tokens(config: ExperimentConfig) -> int | None:
    """Tokens of the training split, if it has been prepared here."""
    root = os.environ.get("HEADCOUNT_DATA")
    manifest = dataset_of(config, Layout.under(Path(root)) if root else Layout.of(config)).manifest()
    return int(manifest["splits"]["train"]["tokens"]) if manifest else None


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _layers(name: str, budget: Budget) -> Table:
    table = _table(f"{name}: layers", "layer", "heads", "head_dim", "parameters", "KV bytes", "FLOPs", "softmax")
    for layer in budget.layers:
        table.add_row(*(f"{number:,}" for number in astuple(layer)))
    table.add_row("embeddings", "", "", f"{budget.embedding_parameters:,}", "", "", "")
    return table


def _totals(budget: Budget, uniform: Budget) -> Table:
    heads = budget.layers[0].n_head if len({u.n_head for u in budget.layers}) == 1 else "unequal"
    table = _table(
        "beside the uniform model", "", f"this ({heads} heads)", f"{uniform.layers[0].n_head} heads", "change"
    )
    for row in comparison(budget, uniform):
        table.add_row(row.label, row.value, row.uniform, row.difference)
    return table


def _memory(budget: Budget) -> Table:
    memory = budget.memory
    table = _table("memory of a training step on a CPU, MiB", "part", "")
    parts = {
        "above import": memory.base_bytes,
        "weights, gradients, optimizer": memory.weights_bytes,
        "activations": memory.activations_bytes,
        "cross entropy": memory.cross_entropy_bytes,
        "attention weights (dropout)": memory.attention_bytes,
        "together": memory.total_bytes,
        "asked for, with a margin": memory.required_bytes,
    }
    for part, size in parts.items():
        table.add_row(part, f"{size / _MIB:,.0f}")
    return table


def _length(budget: Budget) -> Table:
    schedule = budget.schedule
    table = _table("length of the training", "", "")
    table.add_row("steps", f"{schedule.steps:,}")
    table.add_row("micro batches a step", f"{schedule.accumulation:,}")
    table.add_row("tokens", f"{schedule.tokens:,}")
    known = f"{schedule.epochs:,.2f}" if schedule.epochs is not None else "unknown: the dataset is not prepared here"
    table.add_row("epochs", known)
    return table
