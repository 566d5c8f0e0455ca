"""Statistics of heads as clients read them: JSON or CSV, in the order of a metric."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from model_core.attention.statistics import (
    FORMULAS,
    even_statistics,
    mean_statistics,
    null_reasons,
)
from service.attention.replies import identity_of
from service.attention.style_query import SortMetric
from service.attention.weight_bodies import Selection, statistics_of


def statistics_json(part: Selection, sort: SortMetric | None, *, is_ascending: bool) -> Iterator[bytes]:
    """Write the statistics of chosen heads.

    Args:
        part: The chosen part of a record.
        sort: Metric by which heads are ordered; None keeps the order of the model.
        is_ascending: Whether the smallest value comes first.

    Yields:
        One piece of JSON.
    """
    measured, span = list(statistics_of(part)), part.tokens
    content = part.record.statistics() if len(span) == len(part.record.tokens) else None
    body = {
        "object": "attention_statistics",
        **identity_of(part.record),
        "tokens": len(span),
        "range": [span.start, span.stop],
        "formulas": dict(FORMULAS),
        "even": even_statistics(span.stop, start=span.start),
        "reasons": content["reasons"] if content else null_reasons(measured, len(span)),
        "heads": _ordered(_rows(part, measured), sort, is_ascending=is_ascending),
        "layers": [{"layer": one["layer"], "mean": mean_statistics(one["heads"])} for one in measured],
    }
    yield json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def statistics_csv(part: Selection, sort: SortMetric | None, *, is_ascending: bool) -> Iterator[bytes]:
    """Write the statistics of chosen heads as a table (RFC 4180).

    Args:
        part: The chosen part of a record.
        sort: Metric by which heads are ordered; None keeps the order of the model.
        is_ascending: Whether the smallest value comes first.

    Yields:
        The table: one row a head, with an empty cell for null.
    """
    rows = _ordered(_rows(part, list(statistics_of(part))), sort, is_ascending=is_ascending)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["layer", "head", "n_head", "head_dim", *FORMULAS])
    writer.writeheader()
    writer.writerows(rows)
    yield text.getvalue().encode()


def _rows(part: Selection, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for one in measured:
        shape = part.shape(one["layer"])
        place = {"layer": one["layer"], "n_head": shape["n_head"], "head_dim": shape["head_dim"]}
        rows += [{"layer": one["layer"], "head": head["head"]} | place | head for head in one["heads"]]
    return rows


def _ordered(rows: list[dict[str, Any]], sort: SortMetric | None, *, is_ascending: bool) -> list[dict[str, Any]]:
    if sort is None:
        return rows
    sign = 1 if is_ascending else -1
    return sorted(rows, key=lambda row: (row[sort] is None, sign * (row[sort] or 0)))
