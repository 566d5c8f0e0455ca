"""Statistics of heads as clients read them: JSON or CSV, in the order of a metric."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from model_core.attention.head_metrics import FORMULAS
from model_core.attention.heads.history import Labels
from model_core.attention.statistics import even_statistics, mean_statistics, null_reasons
from service.attention.replies import identity_of
from service.attention.style_query import SortMetric
from service.attention.weight_bodies import Selection, statistics_of

NOT_PROBED = "not_probed"  # why a checkpoint has no types


def statistics_json(
    part: Selection, sort: SortMetric | None, types: Labels | None, *, is_ascending: bool
) -> Iterator[bytes]:
    """Write the statistics of chosen heads.

    Args:
        part: The chosen part of a record.
        sort: Metric by which heads are ordered; None keeps the order of the model.
        types: Labels of the heads that have one; None if the checkpoint was not probed.
        is_ascending: Whether the smallest value comes first.

    Yields:
        One piece of JSON.
    """
    measured, span = list(statistics_of(part)), part.tokens
    content = part.record.statistics() if len(span) == len(part.record.tokens) else None
    reasons = content["reasons"] if content else null_reasons(measured, len(span))
    body = {
        "object": "attention_statistics",
        **identity_of(part.record),
        "tokens": len(span),
        "range": [span.start, span.stop],
        "formulas": dict(FORMULAS),
        "even": even_statistics(span.stop, start=span.start),
        "reasons": reasons if types is not None else reasons | {"types": NOT_PROBED},
        "heads": _ordered(_rows(part, measured, types), sort, is_ascending=is_ascending),
        "layers": [{"layer": one["layer"], "mean": mean_statistics(one["heads"])} for one in measured],
    }
    yield json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def statistics_csv(
    part: Selection, sort: SortMetric | None, types: Labels | None, *, is_ascending: bool
) -> Iterator[bytes]:
    """Write the statistics of chosen heads as a table (RFC 4180).

    Args:
        part: The chosen part of a record.
        sort: Metric by which heads are ordered; None keeps the order of the model.
        types: Labels of the heads that have one; None if the checkpoint was not probed.
        is_ascending: Whether the smallest value comes first.

    Yields:
        The table: one row a head, with an empty cell for null.
    """
    rows = _ordered(_rows(part, list(statistics_of(part)), types), sort, is_ascending=is_ascending)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["layer", "head", "n_head", "head_dim", *FORMULAS, "types"])
    writer.writeheader()
    writer.writerows(row | {"types": _names(row["types"])} for row in rows)
    yield text.getvalue().encode()


def _rows(part: Selection, measured: list[dict[str, Any]], types: Labels | None) -> list[dict[str, Any]]:
    rows = []
    for one in measured:
        shape = part.shape(one["layer"])
        place = {"layer": one["layer"], "n_head": shape["n_head"], "head_dim": shape["head_dim"]}
        for head in one["heads"]:
            labels = None if types is None else list(types.get(f"{one['layer']}.{head['head']}", ()))
            rows.append({"layer": one["layer"], "head": head["head"]} | place | head | {"types": labels})
    return rows


def _names(labels: list[Mapping[str, Any]] | None) -> str | None:
    """Names of labels for a cell, a weak one with a question mark; None if the checkpoint was not probed."""
    if labels is None:
        return None
    return " ".join(f"{label['type']}{'?' if label['strength'] == 'weak' else ''}" for label in labels)


def _ordered(rows: list[dict[str, Any]], sort: SortMetric | None, *, is_ascending: bool) -> list[dict[str, Any]]:
    if sort is None:
        return rows
    sign = 1 if is_ascending else -1
    return sorted(rows, key=lambda row: (row[sort] is None, sign * (row[sort] or 0)))
