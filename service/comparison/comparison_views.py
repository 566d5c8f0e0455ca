"""The reply to a comparison, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self
from urllib.parse import urlencode

from pydantic import Field

from model_core.attention.heads.matching import Matching
from model_core.attention.pictures.comparison_plots import CurvePlot, MatchPlot, draw_curves, draw_matches
from service.comparison.compared_runs import (
    ComparedRun,
    DifferenceView,
    GroupView,
    ModelView,
    compare_configs,
    group_runs,
    view_model,
)
from service.comparison.matched_heads import HeadComparison, HeadMeansView, MatchView
from service.comparison.run_curves import CurvesView
from service.comparison.shared_text import SharedText, SharedTextView, text_picture
from service.schemas import View, link
from worker.jobs.schemas import Warned

_AXES = {"step": "Step", "tokens": "Tokens", "seconds": "Seconds of training"}
_METRICS = {"loss": "loss (nats a token)", "val_loss": "val_loss (nats a token)", "bits_per_byte": "bits_per_byte"}
_DRAWN = ("val_loss", "bits_per_byte")  # the training loss is noise around the first


class ComparisonLinks(View):
    """Links of a comparison."""

    self_: str = Field(serialization_alias="self")
    curves: str
    heads: str
    attention: str
    runs: list[str]


class ComparisonView(View):
    """Several runs against the first."""

    object: Literal["comparison"] = "comparison"
    runs: list[str]
    checkpoints: list[str]
    models: list[ModelView]
    differences: list[DifferenceView]
    equal: int = Field(description="number of keys of the configurations that are equal in all")
    groups: list[GroupView] = Field(description="runs that differ only in device.seed")
    curves: CurvesView | None
    statistics: HeadMeansView | None
    heads: list[MatchView] | None
    text: SharedTextView | None
    warnings: list[Warned]
    links: ComparisonLinks

    @classmethod
    def of(
        cls,
        runs: Sequence[ComparedRun],
        curves: CurvesView | None,
        heads: HeadComparison | None,
        text: SharedText | None,
    ) -> Self:
        """Build the view.

        Args:
            runs: The runs.
            curves: Their curves; None if they were not requested.
            heads: Their heads; None if they were not requested.
            text: A text under all of them; None if none was requested.

        Returns:
            The view.
        """
        differences, equal = compare_configs([compared.config for compared in runs])
        return cls(
            runs=[compared.name for compared in runs],
            checkpoints=[compared.checkpoint.file for compared in runs],
            models=[view_model(compared) for compared in runs],
            differences=differences,
            equal=equal,
            groups=group_runs(runs, _validated(curves)),
            curves=curves,
            statistics=None if heads is None else heads.statistics,
            heads=None if heads is None else list(heads.matches),
            text=None if text is None else text.view,
            warnings=[warning for compared in runs for warning in compared.warnings],
            links=_links(runs),
        )


def curves_picture(runs: Sequence[ComparedRun], curves: CurvesView) -> bytes:
    """Draw the validation curves.

    Args:
        runs: The runs.
        curves: Their curves.

    Returns:
        A PNG.
    """
    plots = [
        CurvePlot(
            _METRICS[metric],
            [
                (name, points.x, [float(value) for value in points.y])
                for name, points in zip(_names(runs), curves.series[metric], strict=True)
            ],
        )
        for metric in _DRAWN
        if metric in curves.series
    ]
    return draw_curves(
        plots, _AXES[curves.x], " · ".join(dict.fromkeys(compared.name for compared in runs)), _facts(runs)
    )


def heads_picture(runs: Sequence[ComparedRun], heads: HeadComparison) -> bytes:
    """Draw which heads of the first run were found again.

    Args:
        runs: The runs.
        heads: Their heads.

    Returns:
        A PNG.
    """
    names = _names(runs)
    plots = []
    for place, (matching, view) in enumerate(zip(heads.matchings, heads.matches, strict=True), 1):
        found = [] if matching is None else [(pair.a, pair.b, pair.overlap) for pair in matching.pairs if pair.similar]
        note = f"not compared: {view.reason}" if matching is None else _note(matching)
        shapes = (runs[0].config.model.heads, runs[place].config.model.heads)
        plots.append(MatchPlot((names[0], names[place]), shapes, found, _flat_heads(matching), note))
    return draw_matches(plots, "Heads found again (grey: too flat)", _facts(runs))


def _note(matching: Matching) -> str:
    similar = [pair.similar for pair in matching.pairs]
    flat = f", {similar.count(None)} too flat to tell" if None in similar else ""
    return f"{similar.count(True)} of {len(similar)} pairs found again{flat}"


def attention_picture(runs: Sequence[ComparedRun], text: SharedText) -> bytes:
    """Draw every head of every run over one text.

    Args:
        runs: The runs.
        text: The text.

    Returns:
        A PNG.

    Raises:
        AttentionTooLarge: It would have too many pixels.
    """
    return text_picture(text, _facts(runs))


def _flat_heads(matching: Matching | None) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    return (frozenset(), frozenset()) if matching is None else (frozenset(matching.flat_a), frozenset(matching.flat_b))


def _validated(curves: CurvesView | None) -> dict[str, list[float | None]]:
    """Values of the latest common validation that are numbers."""
    if curves is None or curves.common is None:
        return {}
    rows = curves.common.values.items()
    return {name: [value if isinstance(value, float) else None for value in row] for name, row in rows}


def _names(runs: Sequence[ComparedRun]) -> list[str]:
    return [
        f"{compared.name} {compared.checkpoint.file.removeprefix('model_').removesuffix('.pt')}" for compared in runs
    ]


def _facts(runs: Sequence[ComparedRun]) -> dict[str, str]:
    return {
        "runs": ",".join(compared.name for compared in runs),
        "checkpoints": ",".join(compared.checkpoint.file for compared in runs),
        "steps": ",".join(str(compared.checkpoint.step) for compared in runs),
        "sha256": ",".join(compared.checkpoint.sha256 for compared in runs),
    }


def _links(runs: Sequence[ComparedRun]) -> ComparisonLinks:
    """Links that name files, so that they show what this reply shows until a file is replaced."""
    query = urlencode(
        {
            "runs": ",".join(compared.name for compared in runs),
            "checkpoints": ",".join(compared.checkpoint.file for compared in runs),
        },
        safe=",",
    )
    pictures = {view: link(f"/compare?{query}&view={view}&format=png") for view in ("curves", "heads", "attention")}
    return ComparisonLinks(
        self_=link(f"/compare?{query}"),
        runs=[link(f"/runs/{compared.name}") for compared in runs],
        **pictures,
    )
