"""A distribution on disk: written once after its pass, read with numpy alone.

``attention_outputs/<run>/distributions/<checkpoint>-<sha256[:8]>-<key>/`` has values.npy (N, S, M), examples.npy
(N, 2) with number and length of each text, quantiles.npz (of each metric and head), distances.npy (1 + S, T) with the
shares of even attention before those of the heads, tokens.json (token ids of the highest lift) and manifest.json, which
is written last: without it there is no distribution. The key is a hash of what decides the texts, so a request finds
its result without reading them.

Shapes: N texts, S heads of all layers, T tokens of the longest text, M metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model_core.attention.head_metrics import FORMULAS
from model_core.attention.heads.distribution import (
    DISTRIBUTION_FORMULAS,
    HIGHEST,
    TEXT_METRICS,
    Distribution,
    EvenSums,
    Quantiles,
    TextSample,
    distance_bins,
    even_means,
)
from model_core.errors import FieldProblem, InvalidParameters
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import EXAMPLES, Dataset
from model_core.storage.files import Layout, atomic_write, now, read_json, write_json

SCHEMA_VERSION = 1
DISTRIBUTIONS, MANIFEST = "distributions", "manifest.json"
LEAST_COUNT = 20  # places of a token id whose lift is told
SHOWN_TOKENS = 20  # of each list of a head
_VALUES, _EXAMPLES, _QUANTILES, _DISTANCES, _TOKENS = (
    "values.npy", "examples.npy", "quantiles.npz", "distances.npy", "tokens.json",
)  # fmt: skip
_NAME = re.compile(r"model_.+-[0-9a-f]{8}-[0-9a-f]{8}")

Manifest = dict[str, Any]


def distribution_key(dataset: Dataset, examples: int, max_tokens: int) -> str:
    """Compute the key of the texts that a distribution is measured on.

    Args:
        dataset: Dataset of the test examples.
        examples: Number of examples, at most those of the dataset.
        max_tokens: Most tokens of an example, at most the model's positions.

    Returns:
        Eight hexadecimal digits; others when the dataset has other examples.
    """
    manifest = dataset.manifest()
    file = dataset.directory / EXAMPLES
    identity = manifest["examples"]["sha256"] if manifest else file.stat().st_size
    wanted = json.dumps([SCHEMA_VERSION, dataset.name, identity, examples, max_tokens])
    return hashlib.sha256(wanted.encode()).hexdigest()[:8]


def distribution_directory(layout: Layout, run: str, checkpoint: CheckpointInfo, key: str) -> Path:
    """Return the directory of a distribution.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        checkpoint: Sidecar of the checkpoint.
        key: As `distribution_key` returns it.

    Returns:
        The path.
    """
    name = f"{Path(checkpoint.file).stem}-{checkpoint.sha256[:8]}-{key}"
    return layout.attention_of(run) / DISTRIBUTIONS / name


@dataclass(frozen=True)
class DistributionRecord:
    """A measured distribution.

    Attributes:
        path: Its directory.
        manifest: ``{schema_version, run, checkpoint, step, sha256, dataset, heads, head_dims, metrics, even, formulas,
            sample: {sha256, examples, tokens, longest, max_tokens, too_short}, seconds, created_at}``.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> DistributionRecord | None:
        """Open a distribution.

        Args:
            path: Its directory.

        Returns:
            The distribution; None if there is none, or if one of its files is missing.
        """
        files = (MANIFEST, _VALUES, _EXAMPLES, _QUANTILES, _DISTANCES, _TOKENS)
        if not all((path / name).is_file() for name in files):
            return None
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            return cls(path, read_json(path / MANIFEST))
        return None

    @classmethod
    def named(cls, layout: Layout, run: str, name: str) -> DistributionRecord | None:
        """Open a distribution of a run by its name.

        Args:
            layout: Paths of the data root.
            run: Name of the run.
            name: Name of the directory, as a client gives it.

        Returns:
            The distribution; None if there is none of that name.
        """
        is_name = _NAME.fullmatch(name) is not None and Path(name).name == name
        return cls.open(layout.attention_of(run) / DISTRIBUTIONS / name) if is_name else None

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer."""
        return tuple(self.manifest["heads"])

    def places(self, *, layer: int | None = None, head: int | None = None) -> list[tuple[int, int]]:
        """Select heads.

        Args:
            layer: Index of a layer; None selects all layers.
            head: Index of a head in its layer; None selects all heads. Without a layer, the heads of that index.

        Returns:
            Layer and head of each.

        Raises:
            InvalidParameters: There is no such layer or head.
        """
        layers = range(len(self.heads)) if layer is None else [_checked("layer", layer, len(self.heads), "the model")]
        most = max(self.heads[number] for number in layers)
        if head is not None:
            _checked("head", head, most, "the model" if layer is None else f"layer {layer}")
        return [
            (number, index) for number in layers for index in range(self.heads[number]) if head is None or index == head
        ]

    def quantiles(self, metrics: Sequence[str], places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read mean, standard deviation and deciles of statistics.

        Args:
            metrics: Names of the statistics.
            places: Layer and head of each head.

        Returns:
            For each head ``{metric: {mean, sd, deciles}}``, with None for a metric that no text is long enough for.
        """
        flat = self._flat(places)
        with np.load(self.path / _QUANTILES, allow_pickle=False) as stored:
            mean, sd, deciles = stored["mean"], stored["sd"], stored["deciles"]  # (M, S), (M, S), (M, 11, S)
        found: list[dict[str, Any]] = [{} for _ in flat]
        for name in metrics:
            metric = self._metric(name)
            for entry, head in zip(found, flat, strict=True):
                is_known = not np.isnan(mean[metric, head])
                entry[name] = {
                    "mean": float(mean[metric, head]),
                    "sd": float(sd[metric, head]),
                    "deciles": deciles[metric, :, head].tolist(),
                } if is_known else None  # fmt: skip
        return found

    def examples(self, metric: str, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Find the examples that show the deciles of a statistic.

        Args:
            metric: Name of the statistic.
            places: Layer and head of each head.

        Returns:
            For each head ``{deciles: [{decile, id, tokens, value}], highest: [{id, tokens, value}]}``: the example
            whose value is nearest to each decile, and those with the highest values.
        """
        index = self._metric(metric)
        with np.load(self.path / _QUANTILES, allow_pickle=False) as stored:
            at_decile, highest = stored["at_decile"][index], stored["highest"][index]  # (11, S), (5, S)
        examples = np.load(self.path / _EXAMPLES, allow_pickle=False)  # (N, 2)
        values = np.load(self.path / _VALUES, mmap_mode="r", allow_pickle=False)  # (N, S, M)

        def shown(text: int, head: int) -> dict[str, Any]:
            number, tokens = (int(value) for value in examples[text])
            return {"id": str(number), "tokens": tokens, "value": float(values[text, head, index])}

        return [
            {
                "deciles": [
                    {"decile": place, **shown(int(text), head)}
                    for place, text in enumerate(at_decile[:, head]) if text >= 0
                ],
                "highest": [shown(int(text), head) for text in highest[:, head] if text >= 0],
            }
            for head in self._flat(places)
        ]  # fmt: skip

    def distances(self, places: Sequence[tuple[int, int]]) -> list[list[dict[str, Any]]]:
        """Read how far heads look.

        Args:
            places: Layer and head of each head.

        Returns:
            For each head and bin of distances ``{first, last, share, even}``; the shares of a head sum to 1.
        """
        shares = np.load(self.path / _DISTANCES, allow_pickle=False)  # (1 + S, T)
        bins = distance_bins(shares.shape[1])
        sums = np.add.reduceat(shares, [first for first, _ in bins], axis=1)  # (1 + S, bins)
        return [
            [
                {"first": first, "last": last, "share": float(share), "even": float(even)}
                for (first, last), share, even in zip(bins, sums[1 + head], sums[0], strict=True)
            ]
            for head in self._flat(places)
        ]

    def tokens(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read which tokens heads look at, and which tokens look away.

        Args:
            places: Layer and head of each head.

        Returns:
            For each head ``{key_tokens: [{token, text, lift, count}], query_tokens: [{token, text, share, even, lift,
            count}]}``, the highest lift first.
        """
        stored = read_json(self.path / _TOKENS)
        pieces = stored["pieces"]
        return [
            {
                "key_tokens": [
                    {"token": token, "text": pieces[str(token)], "lift": lift, "count": count}
                    for token, lift, count in stored["heads"][head]["key_tokens"]
                ],
                "query_tokens": [
                    {"token": token, "text": pieces[str(token)], "share": share, "even": even, "lift": lift, "count": n}
                    for token, share, even, lift, n in stored["heads"][head]["query_tokens"]
                ],
            }
            for head in self._flat(places)
        ]

    def _flat(self, places: Sequence[tuple[int, int]]) -> list[int]:
        starts = np.cumsum([0, *self.heads])
        return [int(starts[layer]) + head for layer, head in places]

    def _metric(self, name: str) -> int:
        index: int = self.manifest["metrics"].index(name)
        return index


def list_distributions(layout: Layout, run: str) -> list[DistributionRecord]:
    """List the distributions of a run.

    Args:
        layout: Paths of the data root.
        run: Name of the run.

    Returns:
        Complete ones, by name.
    """
    home = layout.attention_of(run) / DISTRIBUTIONS
    folders = sorted(home.iterdir()) if home.is_dir() else []
    return [record for folder in folders if (record := DistributionRecord.named(layout, run, folder.name)) is not None]


def write_distribution(
    directory: Path,
    measured: Distribution,
    sample: TextSample,
    fields: Manifest,
    pieces: Callable[[Sequence[int]], list[str]],
) -> DistributionRecord:
    """Write a distribution; it exists once its manifest is written.

    Args:
        directory: Its directory.
        measured: What was measured.
        sample: The texts.
        fields: Fields of the manifest that only the caller knows; `sample` has those about the request.
        pieces: Labels of token ids.

    Returns:
        The distribution.
    """
    (directory / MANIFEST).unlink(missing_ok=True)
    even = EvenSums.of(sample)
    _save(directory / _VALUES, measured.values)
    _save(directory / _EXAMPLES, np.stack([np.array(sample.examples), sample.lengths], axis=1).astype(np.int64))
    with atomic_write(directory / _QUANTILES) as file:
        _save_quantiles(file, measured.values)
    _save(directory / _DISTANCES, np.vstack([even.distances, measured.distances]) / even.queries)  # (1 + S, T)
    write_json(directory / _TOKENS, _token_lists(measured, sample, even, pieces))
    described = {
        "sha256": sample.sha256,
        "examples": len(sample.texts),
        "tokens": int(sample.lengths.sum()),
        "longest": int(sample.lengths.max()),
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        **fields,
        "metrics": list(TEXT_METRICS),
        "even": even_means(sample),
        "formulas": {**{name: FORMULAS[name] for name in TEXT_METRICS}, **DISTRIBUTION_FORMULAS},
        "sample": {**described, **fields["sample"]},
        "created_at": now(),
    }
    write_json(directory / MANIFEST, manifest)
    return DistributionRecord(directory, manifest)


def _checked(kind: str, value: int, count: int, owner: str) -> int:
    if not 0 <= value < count:
        detail = f"{owner} has no {kind} {value}; its {kind}s are 0 to {count - 1}"
        raise InvalidParameters([FieldProblem(f"/{kind}", detail, value, (count - 1,))])
    return value


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic_write(path) as file:
        np.save(file, array)


def _save_quantiles(file: BinaryIO, values: NDArray[np.float32]) -> None:
    """Compute and save the quantiles of each metric; NaN and -1 stand for a metric that no text has."""
    _, n_heads, n_metrics = values.shape
    mean, sd = np.full((2, n_metrics, n_heads), np.nan)  # (M, S)
    deciles = np.full((n_metrics, 11, n_heads), np.nan)  # (M, 11, S)
    at_decile = np.full((n_metrics, 11, n_heads), -1, np.int64)  # (M, 11, S)
    highest = np.full((n_metrics, HIGHEST, n_heads), -1, np.int64)  # (M, 5, S)
    for metric in range(n_metrics):
        found = Quantiles.of(values[:, :, metric])
        if found is not None:
            mean[metric], sd[metric], deciles[metric] = found.mean, found.sd, found.deciles
            at_decile[metric] = found.at_decile
            highest[metric, : len(found.highest)] = found.highest
    np.savez(file, mean=mean, sd=sd, deciles=deciles, at_decile=at_decile, highest=highest)


def _token_lists(
    measured: Distribution, sample: TextSample, even: EvenSums, pieces: Callable[[Sequence[int]], list[str]]
) -> dict[str, Any]:
    """Tokens that occur at least LEAST_COUNT times, by head: those of the highest lift first."""
    heads: list[dict[str, list[list[Any]]]] = []
    ids = sample.vocabulary
    keys, queries = (np.flatnonzero(count >= LEAST_COUNT) for count in (even.received_count, even.elsewhere_count))
    for received, elsewhere in zip(measured.received, measured.elsewhere, strict=True):
        lift = received[keys] / even.received[keys]
        share = elsewhere[queries] / even.elsewhere_count[queries]
        even_share = even.elsewhere[queries] / even.elsewhere_count[queries]
        ratio = share / even_share
        heads.append(
            {
                "key_tokens": [
                    [int(ids[keys[n]]), round(float(lift[n]), 4), int(even.received_count[keys[n]])]
                    for n in _highest(lift)
                ],
                "query_tokens": [
                    [int(ids[queries[n]]), *(round(float(x[n]), 4) for x in (share, even_share, ratio)),
                     int(even.elsewhere_count[queries[n]])]
                    for n in _highest(ratio)
                ],
            }
        )  # fmt: skip
    used = sorted({entry[0] for head in heads for entries in head.values() for entry in entries})
    return {"pieces": dict(zip(map(str, used), pieces(used), strict=True)), "heads": heads}


def _highest(values: NDArray[np.float64]) -> Iterator[int]:
    return iter(np.argsort(-values, kind="stable")[:SHOWN_TOKENS].tolist())
