"""Heads of several checkpoints on the same windows of text: statistics side by side, and which were found again.

The windows are those of the probe of the first run whose dataset is there. What every head attends to in them is
captured once for a checkpoint and kept on disk. All patterns of a comparison are in memory only while they are matched,
on bounded threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.attention.head_metrics import METRICS
from model_core.attention.heads.matching import Matching, match_heads
from model_core.attention.heads.patterns import (
    MAX_HEADS,
    MEASURED,
    WINDOW,
    HeadPatterns,
    patterns_file,
    windows_key,
)
from model_core.attention.statistics import even_statistics
from model_core.errors import ModelCoreError
from model_core.schemas import PatternsRequest
from service.admission import not_ready
from service.comparison.compared_runs import TOKENIZERS_DIFFER, ComparedRun
from service.deps import Services
from service.protocol.errors import InferenceUnavailable
from service.schemas import View
from worker.web.disconnect import while_connected

TOO_MANY_HEADS = "too_many_heads"  # a reason for null

HeadRef = tuple[int, int]


class PairView(View):
    """Two heads that an assignment put together; see `matching.HeadPair`."""

    a: HeadRef
    b: HeadRef
    overlap: float
    distance: float
    ratio: float | None
    mutual: bool
    similar: bool | None


class UnmatchedView(View):
    """Heads that an assignment leaves over."""

    a: list[HeadRef]
    b: list[HeadRef]


class OthersView(View):
    """Ratios of the pairs that are not assigned, without flat heads."""

    mean: float
    sd: float


class MatchView(View):
    """Heads of the first run matched with those of another."""

    runs: tuple[str, str]
    checkpoints: tuple[str, str]
    mean: float | None = None
    pairs: list[PairView] | None = None
    unmatched: UnmatchedView | None = None
    others: OthersView | None = None
    reason: str | None = None


class CommonProbeView(View):
    """The windows that all heads were measured on."""

    run: str
    dataset: str
    sha256: str
    sequences: int
    tokens: int


class LayerMeansView(View):
    """One layer of all runs; null where a run has no such layer, or was not measured."""

    layer: int
    n_head: list[int | None]
    metrics: dict[str, list[float | None]]


class HeadMeansView(View):
    """Statistics of all runs on the same windows."""

    probe: CommonProbeView | None = None
    even: dict[str, float | None] = Field(default={})
    formulas: dict[str, str] = Field(default={})
    layers: list[LayerMeansView] = Field(default=[])
    reason: str | None = None


@dataclass(frozen=True)
class HeadComparison:
    """Heads of several checkpoints.

    Attributes:
        statistics: Means by layer.
        matches: The first run with each other one.
        matchings: The assignments; None where there is none.
    """

    statistics: HeadMeansView
    matches: Sequence[MatchView]
    matchings: Sequence[Matching | None]


async def compare_heads(
    services: Services, request: Request, runs: Sequence[ComparedRun], *, required: bool
) -> HeadComparison:
    """Measure the heads of all runs, and match those of the first run with those of each other one.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        runs: The runs.
        required: Raise what prevents it; otherwise the views have its code as their reason.

    Returns:
        The comparison.

    Raises:
        ModelCoreError: It is required, and no inference process can capture the heads, or no dataset is there.
    """
    reasons = _reasons(runs)
    try:
        source, files = await _capture(services, request, [not reason for reason in reasons], runs)
        return await to_thread.run_sync(_compare, source, files, runs, reasons, limiter=services.drawing)
    except ModelCoreError as error:
        if required:
            raise
        return _compare(None, [None] * len(runs), runs, [reason or error.code for reason in reasons])


def _compare(
    source: ComparedRun | None,
    files: Sequence[Path | None],
    runs: Sequence[ComparedRun],
    reasons: Sequence[str | None],
) -> HeadComparison:
    patterns = [None if file is None else _read(file) for file in files]
    first = patterns[0]
    matchings = [match_heads(first, other) if first and other else None for other in patterns[1:]]
    views = [
        _match_view((runs[0], other), matching, reasons[0] or reason)
        for other, matching, reason in zip(runs[1:], matchings, reasons[1:], strict=True)
    ]
    return HeadComparison(_means_view(_Measured(source, patterns), runs, reasons), views, matchings)


@dataclass(frozen=True)
class _Measured:
    """Patterns of the runs that can be compared, on the windows of one of them."""

    source: ComparedRun | None
    patterns: Sequence[HeadPatterns | None]


def _reasons(runs: Sequence[ComparedRun]) -> list[str | None]:
    reasons: list[str | None] = []
    for compared in runs:
        too_many = sum(compared.config.model.heads) > MAX_HEADS
        differs = compared.tokenizer != runs[0].tokenizer
        reasons.append(TOKENIZERS_DIFFER if differs else TOO_MANY_HEADS if too_many else None)
    return reasons


async def _capture(
    services: Services, request: Request, wanted: Sequence[bool], runs: Sequence[ComparedRun]
) -> tuple[ComparedRun | None, Sequence[Path | None]]:
    """The run of the windows, and the file of each run that can be compared."""
    chosen = [compared for compared, is_wanted in zip(runs, wanted, strict=True) if is_wanted]
    if not wanted[0] or len(chosen) < 2:
        return None, [None] * len(runs)
    source = await run_in_threadpool(_source, chosen)
    tokens = min(WINDOW, *(compared.config.model.block_size for compared in chosen))
    files = [
        await _patterns_file(services, request, compared, source, tokens) if is_wanted else None
        for compared, is_wanted in zip(runs, wanted, strict=True)
    ]
    return source, files


def _source(runs: Sequence[ComparedRun]) -> ComparedRun:
    """The first run whose dataset is there.

    Raises:
        DatasetNotReady: There is none.
    """
    found = next((compared for compared in runs if not compared.dataset.missing()), None)
    if found is None:
        raise not_ready(runs[0].dataset, runs[0].config)
    return found


async def _patterns_file(
    services: Services, request: Request, compared: ComparedRun, source: ComparedRun, tokens: int
) -> Path:
    sha256 = compared.checkpoint.sha256
    key = await run_in_threadpool(windows_key, source.dataset, tokens)
    file = patterns_file(services.layout, compared.name, sha256, key)
    if await to_thread.run_sync(_is_intact, file, limiter=services.drawing):
        return file
    wanted = PatternsRequest(
        run=compared.name, checkpoint=compared.checkpoint.file, windows_of=source.name, tokens=tokens
    )
    await while_connected(request, services.hosts.post("/patterns", wanted, sha256))
    return file


def _is_intact(file: Path) -> bool:
    return HeadPatterns.load(file) is not None


def _read(file: Path) -> HeadPatterns:
    found = HeadPatterns.load(file)
    if found is None:
        raise InferenceUnavailable("a checkpoint or its dataset was replaced, or its patterns were deleted; ask again")
    return found


def _match_view(runs: tuple[ComparedRun, ComparedRun], matching: Matching | None, reason: str | None) -> MatchView:
    names, files = (runs[0].name, runs[1].name), (runs[0].checkpoint.file, runs[1].checkpoint.file)
    if matching is None:
        return MatchView(runs=names, checkpoints=files, reason=reason)
    pairs = [
        PairView(
            a=pair.a, b=pair.b, overlap=_rounded(pair.overlap), distance=_rounded(pair.distance),
            ratio=None if pair.ratio is None else _rounded(pair.ratio), mutual=pair.mutual, similar=pair.similar,
        )
        for pair in matching.pairs
    ]  # fmt: skip
    others = matching.others
    return MatchView(
        runs=names, checkpoints=files, mean=_rounded(matching.mean), pairs=pairs,
        unmatched=UnmatchedView(a=list(matching.unmatched_a), b=list(matching.unmatched_b)),
        others=None if others is None else OthersView(mean=_rounded(others[0]), sd=_rounded(others[1])),
    )  # fmt: skip


def _means_view(measured: _Measured, runs: Sequence[ComparedRun], reasons: Sequence[str | None]) -> HeadMeansView:
    first = measured.patterns[0]
    if measured.source is None or first is None:
        return HeadMeansView(reason=next((reason for reason in reasons if reason), None))
    probe = CommonProbeView(
        run=measured.source.name,
        dataset=measured.source.dataset.name,
        sha256=first.probe,
        sequences=first.levels.shape[1],
        tokens=first.tokens,
    )
    even = even_statistics(first.tokens)
    columns = [_layer_means(one) for one in measured.patterns]
    layers = [
        LayerMeansView(
            layer=layer,
            n_head=[_at(compared.config.model.heads, layer) for compared in runs],
            metrics={name: [_at(column.get(name, ()), layer) for column in columns] for name in MEASURED},
        )
        for layer in range(max(compared.config.model.n_layer for compared in runs))
    ]
    return HeadMeansView(
        probe=probe,
        even={name: even[name] for name in MEASURED},
        formulas={name: METRICS[name].formula for name in MEASURED},
        layers=layers,
        reason=next((reason for reason in reasons if reason), None),
    )


def _layer_means(patterns: HeadPatterns | None) -> Mapping[str, Sequence[float]]:
    if patterns is None:
        return {}
    starts = np.cumsum((0, *patterns.heads))[:-1]  # (L,)
    counts = np.array(patterns.heads)  # (L,)
    return {
        name: [_rounded(mean) for mean in (np.add.reduceat(column, starts) / counts).tolist()]
        for name, column in patterns.values.items()
    }


def _at(row: Sequence[Any], place: int) -> Any:
    return row[place] if place < len(row) else None


def _rounded(value: float) -> float:
    """Four significant digits, as events have them."""
    return float(f"{value:.4g}")
