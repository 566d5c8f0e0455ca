"""Ablations on disk: options, cost, sample, finished passes and results. Torch-free, because the service reads them.

An ablation is named by its checkpoint and a hash of its sample and options: ``model_best-1a2b3c4d-5e6f7a8b``. Its
result appears when it is complete. Until then finished passes are lines of a hidden file beside it, so the next attempt
at the same ablation, of whichever job, continues after them.

Shapes: N windows of the sample, T tokens of a window.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model_core.config import Config, Whole
from model_core.data.token_arrays import load_tokens
from model_core.errors import InvalidData, ResultNotFound
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout, read_json, translate_disk_full, write_json

Array = NDArray[np.float64]
Split = Literal["train", "val", "test"]
Baseline = Literal["zero", "mean", "resample"]

BASELINES: Mapping[Baseline, str] = {
    "zero": "zeros",
    "mean": "its mean over sample and positions",
    "resample": "that of another window at the same position, a mean over draws",
}  # what takes the place of what a head read, before W_O
FORMULAS = {
    "change": "nats a token: mean over windows of the loss without the head minus the clean loss",
    "stderr": "standard deviation over windows of the paired difference / sqrt(windows)",
    "kl": "nats a token: mean over windows of KL(clean || ablated) of the next token",
    "clear": "change > 3 stderr",
    "null": "change by random subspaces of the layer's joined heads, as large as one head, replaced in the same way",
    "above_null": "change > mean + 3 sd of the null; null in a layer of one head, where the null is the head",
    "ratio": "change of the layer / sum of the changes of its heads",
}
COLUMNS = ("layer", "head", "n_head", "head_dim", "change", "stderr", "kl", "kl_stderr", "clear", "above_null")

_LEAST_WINDOWS = 8  # a standard error of fewer says little
_DIRECTORY = "ablations"
_NAME = re.compile(r"model_[A-Za-z0-9_]+-[0-9a-f]{8}-[0-9a-f]{8}")


class AblationOptions(Config):
    """What an ablation measures."""

    checkpoint: str = Field(
        default="best", min_length=1, max_length=100, description="`best`, `final`, `latest`, `step=N` or a file name"
    )
    baseline: Baseline = Field(default="mean", description="what takes the place of what a head read")
    tokens: Whole = Field(default=16_384, ge=64, le=2**22, description="tokens of the sample, in windows of one length")
    split: Split = Field(default="test", description="split of the run's dataset that is sampled")
    draws: Whole = Field(default=4, ge=2, le=64, description="random subspaces of a layer; with resample, windows too")


@dataclass(frozen=True)
class Part:
    """What one pass replaces.

    Attributes:
        kind: ``clean`` replaces nothing, ``head`` one head, ``layer`` all heads, ``null`` a random subspace.
        layer: Index of the layer; 0 of ``clean``.
        head: Index of the head; 0 of other kinds.
        draw: Number of the draw, from 0, of a subspace and with ``resample``; else 0.
    """

    kind: Literal["clean", "head", "layer", "null"]
    layer: int = 0
    head: int = 0
    draw: int = 0


@dataclass(frozen=True)
class Measurement:
    """What one pass found over consecutive windows of the sample.

    Attributes:
        part: What was replaced.
        first: Index of the first window.
        loss: Mean loss of each window in nats for ``clean``; else its change.
        kl: KL(clean || ablated) of each window in nats; zeros for ``clean``.
        seconds: Duration of the pass.
    """

    part: Part
    first: int
    loss: tuple[float, ...]
    kl: tuple[float, ...]
    seconds: float

    @property
    def key(self) -> tuple[Part, int]:
        """Identifies the pass."""
        return self.part, self.first


@dataclass(frozen=True)
class Sample:
    """Windows of a split at even places, that do not overlap.

    Attributes:
        split: Name of the split.
        ids: Token ids, (N, T + 1): the last one is only a target.
    """

    split: str
    ids: NDArray[np.int64]

    @property
    def sha256(self) -> str:
        """Hash of the ids, hex."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()

    @property
    def windows(self) -> int:
        """Number of windows, N."""
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens that a window predicts, T."""
        return int(self.ids.shape[1]) - 1


def read_sample(dataset: Dataset, options: AblationOptions, *, block_size: int, vocab_size: int) -> Sample:
    """Read the sample of an ablation.

    Args:
        dataset: Dataset of the run.
        options: Split and number of tokens. A short split gives fewer windows.
        block_size: Positions of the model: the longest window.
        vocab_size: Ids of the model.

    Returns:
        At least two windows.

    Raises:
        InvalidData: The split is too short, or has ids that the model lacks.
    """
    ids = load_tokens(dataset.split(options.split))
    length = min(block_size, options.tokens // _LEAST_WINDOWS)
    windows = min(options.tokens // length, max(0, len(ids) - 1) // length)
    least = max(2, options.draws + 1 if options.baseline == "resample" else 0)
    if windows < least:
        needed = f"an ablation needs at least {least} windows of {length} tokens, and one more token"
        raise InvalidData(f"the {options.split} split of {dataset.name!r} has {len(ids):,} tokens; {needed}")
    starts = np.linspace(0, len(ids) - 1 - length, windows).astype(np.int64)  # (N,)
    rows = np.stack([np.asarray(ids[start : start + length + 1], dtype=np.int64) for start in starts])  # (N, T + 1)
    if (largest := int(rows.max())) >= vocab_size:
        raise InvalidData(f"the {options.split} split has the id {largest}; the model has {vocab_size}")
    return Sample(options.split, rows)


def parts(heads: Sequence[int], options: AblationOptions) -> Iterator[Part]:
    """List the passes of an ablation, layer by layer. In a layer of one head, the layer and the null are the head.

    Args:
        heads: Head count of every layer.
        options: Baseline and draws.

    Yields:
        The passes without the clean one.
    """
    draws = range(options.draws if options.baseline == "resample" else 1)
    for layer, n_head in enumerate(heads):
        yield from (Part("head", layer, head, draw) for head in range(n_head) for draw in draws)
        if n_head > 1:
            yield from (Part("layer", layer, draw=draw) for draw in draws)
            yield from (Part("null", layer, draw=draw) for draw in range(options.draws))


def share_of_pass(part: Part, n_layer: int) -> float:
    """Compute the share of the model that a pass runs: its layer and those after it.

    Args:
        part: What is replaced.
        n_layer: Number of layers.

    Returns:
        1 for the first layer.
    """
    return 1 - part.layer / n_layer


def count_passes(heads: Sequence[int], options: AblationOptions) -> float:
    """Count the passes of an ablation in whole passes of the model.

    Args:
        heads: Head count of every layer.
        options: Baseline and draws.

    Returns:
        Sum of the shares of `share_of_pass`, rounded once.
    """
    return sum(len(heads) - part.layer for part in parts(heads, options)) / len(heads)


# --- names and files -------------------------------------------------------------------------------------------------


def ablation_name(info: CheckpointInfo, options: AblationOptions, sample: Sample) -> str:
    """Name an ablation.

    Args:
        info: Sidecar of the checkpoint.
        options: Options.
        sample: The sample.

    Returns:
        Checkpoint, its hash, and the hash of sample and options.
    """
    chosen = {**options.model_dump(exclude={"checkpoint"}), "sample": sample.sha256}
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return f"{Path(info.file).stem}-{info.sha256[:8]}-{key[:8]}"


def result_file(layout: Layout, run: str, name: str) -> Path:
    """Return the path of a result.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        name: Name of the ablation.

    Returns:
        The path.

    Raises:
        ResultNotFound: No ablation can have that name.
    """
    if not _NAME.fullmatch(name):
        raise ResultNotFound(run, name)
    return layout.attention_of(run) / _DIRECTORY / f"{name}.json"


def read_result(layout: Layout, run: str, name: str) -> dict[str, Any]:
    """Read a result.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        name: Name of the ablation.

    Returns:
        Content of the file, as `build_result` makes it.

    Raises:
        ResultNotFound: There is none of that name.
    """
    try:
        result: dict[str, Any] = read_json(result_file(layout, run, name))
        return result
    except FileNotFoundError:
        raise ResultNotFound(run, name) from None


def list_results(layout: Layout, run: str) -> list[str]:
    """List the results of a run.

    Args:
        layout: Directories of the data root.
        run: Name of the run.

    Returns:
        Their names, in order.
    """
    directory = layout.attention_of(run) / _DIRECTORY
    if not directory.is_dir():
        return []
    return sorted(path.stem for path in directory.glob("*.json") if _NAME.fullmatch(path.stem))


def delete_result(layout: Layout, run: str, name: str) -> None:
    """Delete a result and the passes that are finished of it; neither need exist.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        name: Name of the ablation.
    """
    path = result_file(layout, run, name)
    path.unlink(missing_ok=True)
    PartialFile(path).delete()


class PartialFile:
    """The finished passes of an ablation, one a line. A line that a killed process left unfinished counts as none.

    Args:
        result: Path of the result.
    """

    def __init__(self, result: Path) -> None:
        self._path = result.with_name(f".{result.stem}.partial.jsonl")

    def read(self) -> list[Measurement]:
        """Read the finished passes.

        Returns:
            One measurement a pass.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = {one.key: one for line in lines if (one := _parse(line)) is not None}
        return list(found.values())

    def append(self, measurement: Measurement) -> None:
        """Add a finished pass.

        Args:
            measurement: What it found.

        Raises:
            DiskFull: No space is left; the passes before it are kept.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with translate_disk_full(self._path), self._path.open("ab") as file:
            file.write(f"\n{json.dumps(asdict(measurement))}".encode())  # a new line, whatever a kill has left
            file.flush()
            os.fsync(file.fileno())

    def delete(self) -> None:
        """Delete the file, if there is one."""
        self._path.unlink(missing_ok=True)


def _parse(line: str) -> Measurement | None:
    try:
        fields = json.loads(line)
        part = Part(**fields.pop("part"))
        return Measurement(part, **{**fields, "loss": tuple(fields["loss"]), "kl": tuple(fields["kl"])})
    except (ValueError, TypeError, KeyError):
        return None


# --- results ---------------------------------------------------------------------------------------------------------


def build_result(
    measurements: Sequence[Measurement],
    *,
    heads: Sequence[int],
    head_dims: Sequence[int],
    options: AblationOptions,
    sample: Sample,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Summarize the passes of an ablation.

    Args:
        measurements: All passes.
        heads: Head count of every layer.
        head_dims: Size of a head of every layer.
        options: Baseline and draws.
        sample: The sample.
        facts: Further fields: run, checkpoint, dataset, device.

    Returns:
        Content of the result's file: `heads`, `layers`, `formulas`, the sample and its clean loss.
    """
    values = _join(measurements, sample.windows)
    layers, rows = [], []
    for layer, (n_head, head_dim) in enumerate(zip(heads, head_dims, strict=True)):
        null = _null_of(values, layer) if n_head > 1 else None
        shape = {"layer": layer, "n_head": n_head, "head_dim": head_dim}
        found = [_effect(values, "head", layer, head) for head in range(n_head)]
        whole = _effect(values, "layer", layer, 0) if n_head > 1 else found[0]
        rows += [
            {**shape, "head": head, **effect, "above_null": _is_above(effect["change"], null)}
            for head, effect in enumerate(found)
        ]
        total = sum(effect["change"] for effect in found)
        ratio = whole["change"] / total if total else None
        layers.append({**shape, **whole, "sum_of_heads": total, "ratio": ratio, "null": null})
    clean = values[Part("clean")][0]  # (N,)
    return {
        "schema_version": 1,
        **facts,
        **options.model_dump(exclude={"checkpoint", "tokens", "split"}),
        "replaced_by": BASELINES[options.baseline],
        "sample": {
            "split": sample.split,
            "windows": sample.windows,
            "length": sample.length,
            "tokens": sample.windows * sample.length,
            "sha256": sample.sha256,
        },
        "loss": float(clean.mean()),
        "passes": count_passes(heads, options),
        "seconds": round(sum(one.seconds for one in measurements), 3),
        "formulas": FORMULAS,
        "heads": rows,
        "layers": layers,
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, which then takes the place of its finished passes.

    Args:
        path: Path of the result.
        result: Its content.

    Raises:
        DiskFull: No space is left.
    """
    write_json(path, result)
    PartialFile(path).delete()


def result_table(result: Mapping[str, Any]) -> str:
    """Write the numbers of a result as CSV: a row for each head, and one with head ``all`` for each layer.

    Args:
        result: Content of the result's file.

    Returns:
        Rows of `COLUMNS`; an empty field is null.
    """
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for layer in result["layers"]:
        table.writerows(head for head in result["heads"] if head["layer"] == layer["layer"])
        table.writerow({**layer, "head": "all", "above_null": None})
    return out.getvalue()


Values = Mapping[Part, tuple[Array, Array]]


def _join(measurements: Sequence[Measurement], windows: int) -> Values:
    """Loss, or its change, and KL of all windows by part; each (N,)."""
    values: dict[Part, tuple[Array, Array]] = {}
    for one in measurements:
        loss, kl = values.setdefault(one.part, (np.full(windows, np.nan), np.full(windows, np.nan)))
        place = slice(one.first, one.first + len(one.loss))
        loss[place], kl[place] = one.loss, one.kl
    return values


def _effect(values: Values, kind: str, layer: int, head: int) -> dict[str, Any]:
    """Change and KL with their standard errors; of several draws, each window counts with its mean."""
    drawn = [values[part] for part in values if (part.kind, part.layer, part.head) == (kind, layer, head)]
    change, kl = (np.mean([pair[number] for pair in drawn], axis=0) for number in (0, 1))  # (N,), (N,)
    mean, stderr = float(change.mean()), _standard_error(change)
    return {
        "change": mean,
        "stderr": stderr,
        "kl": float(kl.mean()),
        "kl_stderr": _standard_error(kl),
        "clear": mean > 3 * stderr,
    }


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _null_of(values: Values, layer: int) -> dict[str, Any]:
    changes = [loss.mean() for part, (loss, _) in values.items() if (part.kind, part.layer) == ("null", layer)]
    return {"mean": float(np.mean(changes)), "sd": float(np.std(changes, ddof=1)), "draws": len(changes)}


def _is_above(change: float, null: Mapping[str, Any] | None) -> bool | None:
    return None if null is None else bool(change > null["mean"] + 3 * null["sd"])
