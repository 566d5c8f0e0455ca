"""`headcount report`: what a configuration costs, computed on this machine. Loads numpy, which no other view needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from headcount.tables import Column, Row, print_card, print_table, print_text
from model_core.config_loader import read_config
from model_core.report import Report, Table, build_report
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout


def cost_report(file: str, overrides: Sequence[str]) -> Report:
    """Calculate what a configuration costs.

    Args:
        file: Path of the configuration.
        overrides: Overrides, `K=V` each.

    Returns:
        The report.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: The configuration is invalid.
    """
    parsed = read_config(file, overrides)
    root = os.environ.get("HEADCOUNT_DATA")
    layout = Layout.under(Path(root)) if root else Layout.of(parsed.config)
    return build_report(parsed, dataset_of(parsed.config, layout))


def print_report(report: Report, *, formulas: bool = False) -> None:
    """Print a report: tables and remarks.

    Args:
        report: The report.
        formulas: Also print how each number is computed.
    """
    for table in report.tables():
        print_text(table.title)
        _print_part(table)
        print()
    for remark in report.remarks():
        print_text(remark)
    if formulas:
        print_card(report.budget.formulas.items())


def _print_part(table: Table) -> None:
    first, *others = table.head
    if not any(table.head):
        print_card((row[0], " ".join(row[1:])) for row in table.rows)
        return
    columns = [Column(first, is_heading=True), *(Column(name, is_number=True) for name in others)]
    print_table(columns, [Row(row) for row in table.rows])
