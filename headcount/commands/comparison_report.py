"""Prints a comparison of runs for people: models, differences, losses, heads found again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headcount.tables import Column, Row, print_table, print_text

Json = Mapping[str, Any]

_OTHER_HEADS = (
    "most heads of one run have no equal in the other; that is usual: each training forms its own heads, "
    "also with the same configuration and another seed"
)


def print_comparison(found: Json) -> None:
    """Print a comparison.

    Args:
        found: Reply of `GET /compare`; parts that were not requested are null.
    """
    _print_models(found)
    if found["differences"]:
        columns = [Column("differs", is_heading=True), *(Column(name) for name in found["runs"])]
        rows = [Row((one["key"], *map(_shown, one["values"]))) for one in found["differences"]]
        print()
        print_table(columns, rows)
    print_text(f"{found['equal']} keys are equal")
    for match in found["heads"] or ():
        print_text(_match_line(match))
    if any(_is_mostly_lost(match) for match in found["heads"] or ()):
        print_text(_OTHER_HEADS)
    if found["text"] is not None:
        text = found["text"]
        scale = f"{text['tokens']} tokens, weights to {text['scale'][1]:g}" if text["scale"] else text["reason"]
        print_text(f"text {text['example']}: {scale}")
    if any(group["val_loss"] and group["val_loss"]["n"] == 1 for group in found["groups"]):
        print_text("one seed of a configuration: a small difference of losses says little")


def _print_models(found: Json) -> None:
    curves = found["curves"] or {"x": "", "common": None}
    common = curves["common"] or {"x": 0, "values": {}}
    values = common["values"]
    columns = [
        Column("run", is_heading=True), Column("checkpoint"), Column("step", is_number=True),
        Column("heads"), Column("parameters", is_number=True),
        *(Column(f"{name} at {curves['x']} {common['x']:g}", is_number=True) for name in values),
    ]  # fmt: skip
    rows = []
    for place, model in enumerate(found["models"]):
        losses = [_shown(row[place]) for row in values.values()]
        heads = ",".join(map(str, model["n_head"]))
        facts = (model["run"], model["checkpoint"], str(model["step"]), heads, f"{model['parameters']:,}")
        rows.append(Row((*facts, *losses)))
    print_table(columns, rows)


def _match_line(match: Json) -> str:
    first, other = match["runs"]
    if match["pairs"] is None:
        return f"heads of {first} and {other}: not compared, {match['reason']}"
    again = [pair for pair in match["pairs"] if pair["similar"]]
    flat = sum(pair["similar"] is None for pair in match["pairs"])
    names = ", ".join(f"{_head(pair['a'])}={_head(pair['b'])}" for pair in again)
    told = f"heads of {first} and {other}: {len(again)} of {len(match['pairs'])} found again"
    return told + (f" ({names})" if names else "") + (f"; {flat} are too flat to tell" if flat else "")


def _is_mostly_lost(match: Json) -> bool:
    """Whether less than half of the heads that can be told apart were found again, in another run."""
    told = [pair["similar"] for pair in match["pairs"] or () if pair["similar"] is not None]
    return len(set(match["runs"])) == 2 and sum(told) * 2 < len(told)


def _head(place: list[int]) -> str:
    return f"{place[0]}.{place[1]}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
