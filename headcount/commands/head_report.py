"""Prints what was measured of heads: statistics on a text, history, distribution and ablation; saves pictures.

A head is named LAYER.HEAD. Each table has a row of even attention, p = 1 / (i + 1), because no number of a head says
anything alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headcount.client import Client, Json
from headcount.tables import Column, Row, print_table, print_text
from headcount.terminal import duration, number

TEXT_METRICS = (
    "entropy_relative", "mean_distance", "diagonal", "previous", "vertical", "horizontal", "local", "long_range",
    "sink",
)  # fmt: skip
TYPE_METRICS = ("previous", "diagonal", "sink", "induction", "duplicate")
SAMPLE_METRICS = ("entropy_relative", "mean_distance", "previous", "diagonal", "sink")
_REASONS = {
    "no_events": "the run has no reading of its heads; --checkpoint best reads one now",
    "head_statistics_off": "evaluation.head_statistics of the run is false; --checkpoint best reads one now",
    "too_many_heads": "the model has more heads than a history is kept for",
}
_DECILES = (0, 1, 5, 9, 10)


def statistics_table(found: Json, *, sort: str | None, top: int | None) -> None:
    """Print the statistics of heads on a text, one row each.

    Args:
        found: Reply of `GET /attention/{run}/{id}/statistics`.
        sort: Metric by which the heads are ordered; it is shown too.
        top: Most heads to print; None prints all.
    """
    start, stop = found["range"]
    part = f"tokens {start} to {stop - 1}" if start else f"{found['tokens']} tokens"
    text = f"{'text' if found['id'].startswith('t_') else 'example'} {found['id']}"
    print_text(f"{found['run']} {found['checkpoint']}, step {found['step']}: {text}, {part}")
    metrics = TEXT_METRICS if sort is None or sort in TEXT_METRICS else (*TEXT_METRICS, sort)
    columns = [*_columns(metrics), Column("types")]
    rows = [
        Row((_name(head), *_numbers(head, metrics), ", ".join(map(_type, head["types"] or ()))))
        for head in found["heads"][:top]
    ]
    print_table(columns, [*rows, Row(("even", *_numbers(found["even"], metrics), ""))])
    if reasons := sorted({found["reasons"][metric] for metric in metrics if metric in found["reasons"]}):
        print_text(f"a dash has no value: {', '.join(reasons)}")
    if any(head["types"] is None for head in found["heads"]):
        print_text(
            f"no types: this checkpoint was not probed; headcount heads {found['run']} --checkpoint best does it"
        )


def history_table(found: Json, metrics: Sequence[str]) -> None:
    """Print the first and the last reading of each head, and the types of the last one.

    Args:
        found: Reply of `GET /runs/{run}/heads`.
        metrics: The metrics to show.
    """
    steps = found["steps"]
    if not steps:
        print_text(f"{found['run']}: no history of heads, {_REASONS.get(found['reason'], found['reason'])}")
        return
    probe, count = found["probe"], len(steps)
    when = f"step {steps[0]}" if count == 1 else f"{count} readings, first and last of steps {steps[0]} to {steps[-1]}"
    print_text(f"{found['run']}: {when}; probe of {probe['sequences']} texts of {probe['tokens']} tokens")
    columns = [*_columns(metrics), Column("types")]
    rows = []
    for layer in found["layers"]:
        for place, head in enumerate(layer["heads"]):
            name = f"{layer['layer']}.{head}"
            curves = [layer["values"][metric][place] for metric in metrics]
            labels = found["types"][-1].get(name, ())
            rows.append(Row((name, *map(_ends, curves), ", ".join(map(_type, labels)))))
    even = [number_or_dash(found["metrics"][metric]["chance"]) for metric in metrics]
    print_table(columns, [*rows, Row(("even", *even, ""))])
    _print_types(found)


def _print_types(found: Json) -> None:
    """Say which heads of the last reading have a type, or that none has one."""
    shown = {f"{layer['layer']}.{head}" for layer in found["layers"] for head in layer["heads"]}
    labels = {head: types for head, types in found["types"][-1].items() if head in shown}
    step = found["steps"][-1]
    if not labels:
        print_text(f"no type found at step {step}: none of these heads passes every gate, the usual answer")
    for head, types in labels.items():
        for label in types:
            score = f"{number(label['score'])}, chance {number(label['chance'])}"
            print_text(f"{head} {label['type']}, {label['strength']} at step {step}: {score}")
    if any(label["strength"] == "weak" for types in labels.values() for label in types):
        print_text("? marks a weak type: it passes every gate, with a score below 0.3")


def distribution_table(found: Json, metric: str | None) -> None:
    """Print what heads do over many examples, one row each.

    Args:
        found: Reply of `GET /runs/{run}/distributions/{name}`.
        metric: The statistic whose deciles are shown; None shows the means of several, and the strongest key token.
    """
    sample = found["sample"]
    print_text(
        f"{found['run']} {found['checkpoint']}, step {found['step']}: "
        f"{sample['examples']} examples of {found['dataset']}, {sample['tokens']:,} tokens"
    )
    if metric is None:
        columns = [*_columns(SAMPLE_METRICS), Column("strongest key token")]
        rows = [Row((_name(h), *_spreads(h["metrics"], SAMPLE_METRICS), _key_token(h))) for h in found["heads"]]
        print_table(columns, [*rows, Row(("even", *_numbers(found["even"], SAMPLE_METRICS), ""))])
        print_text("mean and standard deviation over examples; a key token with the weight it receives / an even share")
        return
    titles = ("lowest", "10 %", "median", "90 %", "highest")
    columns = [
        Column("head", is_heading=True), Column("mean", is_number=True), Column("sd", is_number=True),
        *(Column(title, is_number=True) for title in titles), Column("median example"), Column("highest example"),
    ]  # fmt: skip
    print_table(columns, [Row((_name(head), *_deciles(head, metric))) for head in found["heads"]])
    print_text(f"{metric}: {found['formulas'][metric]}; even attention {number_or_dash(found['even'][metric])}")


def ablation_table(ablation: Json) -> None:
    """Print what a model loses without each head, and without all heads of each layer, one per row.

    Args:
        ablation: The ablation, as the service answered it.
    """
    sample = ablation["sample"]
    measured = f"loss {ablation['loss']:.4f} on {sample['tokens']:,} tokens of the {sample['split']} split"
    print_text(f"{ablation['run']} {ablation['checkpoint']}: {measured}, nats a token")
    print_text(f"without a head, whose read becomes {ablation['replaced_by']}:")
    columns = (
        Column("head", is_heading=True), Column("change", is_number=True), Column("stderr", is_number=True),
        Column("KL", is_number=True), Column("clear"), Column("above null"),
    )  # fmt: skip
    rows = []
    for layer in ablation["layers"]:
        heads = [head for head in ablation["heads"] if head["layer"] == layer["layer"]]
        rows += [Row((_name(head), *_ablated(head))) for head in heads]
        rows.append(Row((f"layer {layer['layer']}", *_ablated(layer))))
    print_table(columns, rows)
    print_text("clear: change > 3 stderr; above null: more than random subspaces as large as the head")


def ablation_cost(quote: Json) -> None:
    """Print what an ablation would cost.

    Args:
        quote: The cost, as the service answered it.
    """
    seconds = "unknown time" if quote["seconds"] is None else " to ".join(duration(value) for value in quote["seconds"])
    print_text(f"{quote['passes']:g} passes over {quote['tokens']:,} tokens: {seconds}")


def save_layers(
    client: Client, manifest: Json, directory: Path, *, layer: int | None, head: int | None, **options: Any
) -> Iterator[Path]:
    """Download attention pictures of a text: one head, one layer, or every layer and all of them on one sheet.

    Args:
        client: Client of the service.
        manifest: Manifest of the text.
        directory: Where to write; created if missing.
        layer: Only this layer; None for all.
        head: Only this head of the layer.
        **options: Query parameters such as `checkpoint`, `format` and `cmap`.

    Yields:
        The written files.
    """
    pictures: dict[str, dict[str, int]] = {}
    if layer is not None or head is not None:
        chosen = {name: value for name, value in (("layer", layer), ("head", head)) if value is not None}
        pictures["_".join(f"{name}{value:02d}" for name, value in chosen.items())] = chosen
    else:
        pictures = {f"layer{one['layer']:02d}": {"layer": one["layer"]} for one in manifest["layers"]} | {"sheet": {}}
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in pictures.items():
        file = directory / f"{name}.{options['format']}"
        file.write_bytes(client.picture(manifest["run"], manifest["id"], **part, **options))
        yield file


def number_or_dash(value: float | None) -> str:
    """Format a number with three decimals.

    Args:
        value: The number, or None.

    Returns:
        The text; a dash for None.
    """
    return "-" if value is None else f"{value:.3f}"


def _columns(metrics: Iterable[str]) -> list[Column]:
    return [Column("head", is_heading=True), *(Column(metric, is_number=True) for metric in metrics)]


def _name(head: Json) -> str:
    return f"{head['layer']}.{head['head']}"


def _numbers(values: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    return [number_or_dash(values[metric]) for metric in metrics]


def _type(label: Json) -> str:
    return f"{label['type']}{'?' if label['strength'] == 'weak' else ''}"


def _ends(curve: Sequence[float | None]) -> str:
    """First and last value of a curve."""
    ends = (curve[0], curve[-1]) if len(curve) > 1 else (curve[-1],)
    return " > ".join(map(number_or_dash, ends))


def _spreads(values: Mapping[str, Json | None], metrics: Sequence[str]) -> list[str]:
    """Mean and standard deviation of each metric."""
    found = [values[metric] for metric in metrics]
    return ["-" if one is None else f"{one['mean']:.3f} ({one['sd']:.3f})" for one in found]


def _key_token(head: Json) -> str:
    if not head["key_tokens"]:
        return ""
    token = head["key_tokens"][0]
    return f"{token['text']!r} x {token['lift']:.1f} ({token['count']} times)"


def _deciles(head: Json, metric: str) -> list[str]:
    spread = head["metrics"][metric]
    if spread is None:
        return ["-"] * 9
    numbers = (spread["mean"], spread["sd"], *(spread["deciles"][decile] for decile in _DECILES))
    at = {example["decile"]: example["id"] for example in head["examples"]}
    return [*map(number_or_dash, numbers), at.get(5, ""), at.get(10, "")]


def _ablated(part: Json) -> tuple[str, ...]:
    above = part.get("above_null")
    numbers = (f"{part[name]:.4f}" for name in ("change", "stderr", "kl"))
    return (*numbers, "yes" if part["clear"] else "no", "" if above is None else "yes" if above else "no")
