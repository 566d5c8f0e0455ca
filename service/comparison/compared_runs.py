"""The runs of a comparison, each with one checkpoint, and what differs in their configurations."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_core.budget import compute_budget
from model_core.config import ExperimentConfig
from model_core.errors import CheckpointNotFound, FieldProblem
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import Dataset, dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.attention.targets import resolve_target
from service.protocol.errors import InvalidRequest
from service.schemas import View
from worker.jobs.schemas import Number, Warned

MAX_RUNS = 8
TOKENIZERS_DIFFER = "tokenizers_differ"  # a reason for null

_OWN = frozenset({"experiment_name"})  # differ between any two runs
_SEED = "device.seed"


@dataclass(frozen=True)
class ComparedRun:
    """A run of a comparison.

    Attributes:
        run: The run.
        checkpoint: Its checkpoint that is compared.
        config: Its resolved configuration.
        dataset: Its dataset, ready or not.
        tokenizer: What two runs with the same tokenizer have in common.
        warnings: What to warn of.
    """

    run: Run
    checkpoint: CheckpointInfo
    config: ExperimentConfig
    dataset: Dataset
    tokenizer: str
    warnings: Sequence[Warned] = ()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer update."""
        return self.config.training.total_batch_size


class ModelView(View):
    """The model of a compared checkpoint."""

    run: str
    checkpoint: str
    step: int
    sha256: str
    tokens_seen: int
    parameters: int
    n_head: list[int]
    n_embd: int
    block_size: int


class DifferenceView(View):
    """A key of the configuration whose values differ."""

    key: str
    values: list[Any]


class SpreadView(View):
    """Mean and standard deviation over runs."""

    mean: Number
    sd: Number | None = None
    n: int


class GroupView(View):
    """Runs that differ only in `device.seed`."""

    runs: list[str]
    val_loss: SpreadView | None = None
    bits_per_byte: SpreadView | None = None


def resolve_runs(layout: Layout, names: Sequence[str], references: Sequence[str]) -> list[ComparedRun]:
    """Find the runs of a comparison.

    Args:
        layout: Paths of the data root.
        names: Names of the runs.
        references: Checkpoint of each: best, final, latest, step=N, a file name or sha256=HASH.

    Returns:
        The runs, in the same order.

    Raises:
        RunNotFound: A run does not exist.
        CheckpointNotReady: A run has no checkpoint yet.
        CheckpointNotFound: A run has others.
        InvalidRequest: A run is given twice with one checkpoint.
    """
    found = [_resolve(layout, name, reference) for name, reference in zip(names, references, strict=True)]
    seen: set[tuple[str, str]] = set()
    for compared in found:
        key = (compared.name, compared.checkpoint.sha256)
        if key in seen:
            present = [info.file for info in compared.run.checkpoints() if info.sha256 != compared.checkpoint.sha256]
            detail = (
                f"{compared.name!r} is given twice with {compared.checkpoint.file}; choose another of its checkpoints"
            )
            raise InvalidRequest((FieldProblem("/runs", detail, compared.name, tuple(present[:5])),))
        seen.add(key)
    return found


def view_model(compared: ComparedRun) -> ModelView:
    """Describe the model of a compared checkpoint.

    Args:
        compared: The run with its checkpoint.

    Returns:
        The view.
    """
    info, model = compared.checkpoint, compared.config.model
    return ModelView(
        run=compared.name,
        checkpoint=info.file,
        step=info.step,
        sha256=info.sha256,
        tokens_seen=info.step * compared.tokens_per_step,
        parameters=compute_budget(compared.config).parameters,
        n_head=list(model.heads),
        n_embd=model.n_embd,
        block_size=model.block_size,
    )


def compare_configs(configs: Sequence[ExperimentConfig]) -> tuple[list[DifferenceView], int]:
    """Compare resolved configurations.

    Args:
        configs: The configurations.

    Returns:
        The keys whose values are not all equal, in the order of the file; and the number of those that are. Names of
        runs do not count.
    """
    trees = [flatten(config.model_dump(mode="json")) for config in configs]
    keys = [key for key in dict.fromkeys(key for tree in trees for key in tree) if key not in _OWN]
    differing = [key for key in keys if any(tree.get(key) != trees[0].get(key) for tree in trees[1:])]
    views = [DifferenceView(key=key, values=[tree.get(key) for tree in trees]) for key in differing]
    return views, len(keys) - len(differing)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the values of a tree by dotted keys.

    Args:
        tree: Sections and values; a list is a value.
        prefix: What stands before each key.

    Returns:
        Value by key, such as ``model.n_layer``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def group_runs(runs: Sequence[ComparedRun], values: Mapping[str, Sequence[float | None]]) -> list[GroupView]:
    """Group the runs that differ only in their seed.

    Args:
        runs: The runs; one that stands there with several checkpoints counts once.
        values: Value of each run by metric: `val_loss`, `bits_per_byte`.

    Returns:
        The groups, in the order of their first runs.
    """
    groups: dict[str, dict[str, int]] = {}
    for place, compared in enumerate(runs):
        tree = flatten(compared.config.model_dump(mode="json"))
        key = repr(sorted((name, value) for name, value in tree.items() if name not in _OWN | {_SEED}))
        groups.setdefault(key, {}).setdefault(compared.name, place)
    return [
        GroupView(
            runs=list(places),
            **{name: _spread([row[place] for place in places.values()]) for name, row in values.items()},
        )
        for places in groups.values()
    ]


def _resolve(layout: Layout, name: str, reference: str) -> ComparedRun:
    run, target = Run.open(layout.run(name)), resolve_target(layout, name, reference)
    present = run.checkpoints()
    info = next((info for info in present if info.file == target.file), None)
    if info is None:
        raise CheckpointNotFound(name, reference, tuple(info.file for info in present))
    config = run.config()
    dataset = dataset_of(config, layout)
    return ComparedRun(run, info, config, dataset, _tokenizer(config, dataset), target.warnings)


def _tokenizer(config: ExperimentConfig, dataset: Dataset) -> str:
    """Identity of the tokenizer: its hash if the dataset is there, or else the dataset's name and the choice."""
    manifest = dataset.manifest()
    if manifest is not None:
        used = manifest["tokenizer"]
        return "gpt2" if used["kind"] == "gpt2" else str(used["sha256"])
    choice = config.data.tokenizer
    if choice == "gpt2" or not dataset.missing():  # token files without a manifest are GPT-2's
        return "gpt2"
    return f"{dataset.name} {choice!r}"


def _spread(values: Sequence[float | None]) -> SpreadView | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return SpreadView(mean=statistics.fmean(known), sd=sd, n=len(known))
