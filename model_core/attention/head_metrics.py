"""The numbers of a head, as a table: formula, unit, bounds and source of each.

In the formulas p is the attention, i the query and j <= i the key. Statistics, history, pictures and the parameters of
requests take their names from here, and the formulas are stored in statistics.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOCAL_REACH = 3  # keys at most this far back count as local
FAINT = 0.1  # of uniform attention: below it a key counts as ignored


@dataclass(frozen=True)
class Metric:
    """Definition of one number of a head.

    Attributes:
        formula: Unit, where it is no share, and formula; p is the attention, i the query, j the key.
        unit: ``share``, ``bits``, ``tokens``, ``tokens^2``, ``ratio`` or ``index``.
        bounds: Smallest and largest value; None where there is no bound.
        in_text: Whether it is measured of a single text.
        in_history: Whether the probe of a checkpoint measures it.
        source: Publication that defines it; None for one of our own.
    """

    formula: str
    unit: str = "share"
    bounds: tuple[float, float | None] = (0.0, 1.0)
    in_text: bool = True
    in_history: bool = False
    source: str | None = None


_UNBOUNDED = (0.0, None)
_VIG = "Vig and Belinkov 2019, arXiv:1906.04284"
_KOBAYASHI = "Kobayashi et al. 2020, arXiv:2004.10102"

METRICS: Mapping[str, Metric] = {
    "entropy": Metric(
        "bits: mean over queries i >= 1 of -sum_j p log2 p; 0 looks at one key, log2(i + 1) at all alike",
        "bits", _UNBOUNDED, source=_VIG,
    ),
    "entropy_relative": Metric(
        "mean over queries i >= 1 of entropy_i / log2(i + 1): 0 focused, 1 spread evenly", in_history=True
    ),
    "sparsity": Metric(f"mean over queries i >= 1 of the share of visible keys with p < {FAINT} / (i + 1)"),
    "mean_distance": Metric(
        "tokens: mean over queries i >= 1 of sum_j p (i - j)", "tokens", _UNBOUNDED, in_history=True, source=_VIG
    ),
    "diagonal": Metric("mean over queries i >= 1 of p[i, i]: a token that looks at itself", in_history=True),
    "previous": Metric(
        "mean over queries i >= 1 of p[i, i - 1]: a token that looks at the one before", in_history=True
    ),
    "vertical": Metric(
        "largest over keys j < T / 2 of the mean over queries i > j of p[i, j]: many look at one key", source=_VIG
    ),
    "vertical_key": Metric("the key j of vertical", "index", _UNBOUNDED),
    "horizontal": Metric(
        "largest over queries i >= T / 2 of 2 ** entropy_i / (i + 1): one token looks at many keys", source=_VIG
    ),
    "horizontal_query": Metric("the query i of horizontal", "index", _UNBOUNDED),
    "local": Metric(f"mean over queries i > {LOCAL_REACH} of the sum of p over keys at most {LOCAL_REACH} back"),
    "long_range": Metric("mean over queries i >= 1 of the sum of p over keys j < i / 2: the farther half of the past"),
    "distance_variance": Metric(
        "tokens^2: mean over queries i >= 1 of sum_j p (i - j)^2 - (sum_j p (i - j))^2: 0 looks at one distance",
        "tokens^2", _UNBOUNDED, in_history=True,
    ),
    "sink": Metric(
        "mean over queries i >= 1 of p[i, 0]: what rests on the first token",
        in_history=True, source="Xiao et al. 2023, arXiv:2309.17453; Gu et al. 2024, arXiv:2410.10781",
    ),
    "sink_norm": Metric(
        "mean over queries i >= 1 of p[i, 0] n_0 / sum_j p n_j, n_j the norm of value j after the output projection: "
        "far below sink, the first token carries nothing",
        in_history=True, source=_KOBAYASHI,
    ),
    "output_norm": Metric(
        "mean over queries i >= 1 of the norm of the head's output after the output projection / the norm of the "
        "layer's input",
        "ratio", _UNBOUNDED, in_history=True, source=_KOBAYASHI,
    ),
    "induction": Metric(
        "random tokens of length K, repeated: mean over queries i = K .. 2K - 2 of p[i, i - K + 1]: looks at what came "
        "after the earlier copy",
        in_text=False, in_history=True, source="Olsson et al. 2022, arXiv:2209.11895",
    ),
    "duplicate": Metric(
        "random tokens of length K, repeated: mean over queries i = K .. 2K - 1 of p[i, i - K]: looks at the copy",
        in_text=False, in_history=True, source="Wang et al. 2022, arXiv:2211.00593",
    ),
}  # fmt: skip

FORMULAS: Mapping[str, str] = {name: metric.formula for name, metric in METRICS.items() if metric.in_text}
HISTORY_METRICS = tuple(name for name, metric in METRICS.items() if metric.in_history)
INDEX_METRICS = frozenset(name for name, metric in METRICS.items() if metric.unit == "index")  # they have no mean
