"""`headcount report`: what a configuration costs, layer by layer, beside the uniform model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from model_core.loading import read_config
from model_core.records.dataset import dataset_of
from model_core.records.files import Layout
from model_core.report import Report, Table, report_of


def report(file: str, overrides: Sequence[str]) -> Report:
    """Read a configuration and count.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: It is wrong.
    """
    parsed = read_config(file, overrides)
    root = os.environ.get("HEADCOUNT_DATA")
    layout = Layout.under(Path(root)) if root else Layout.of(parsed.config)
    return report_of(parsed, dataset_of(parsed.config, layout))


def show(report: Report, console: Console) -> None:
    """Draw the tables."""
    for table in report.tables():
        console.print(_drawn(table))
    for remark in report.remarks():
        console.print(remark, markup=False)
    for what, formula in report.budget.formulas.items():
        console.print(f"{what} = {formula}", markup=False, highlight=False, style="dim")


def _drawn(table: Table) -> RichTable:
    first, *others = table.head
    drawn = RichTable(title=table.title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    drawn.add_column(first)
    for name in others:
        drawn.add_column(name, justify="right", overflow="fold")  # no digit is lost, however narrow the terminal
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
