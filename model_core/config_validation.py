"""Rules between the sections of a configuration, and the comparison of two configurations.

A rule reads one or two sections and yields what is wrong. Rules run on every section that is valid in itself, so that
one answer holds all errors of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from model_core.catalog import BUILTIN_SOURCES, SOURCE_SYNTAX, hub_dataset
from model_core.config import (
    GPT2_VOCABULARY,
    CheckpointConfig,
    Config,
    DataConfig,
    ExecutionConfig,
    ModelConfig,
    TestingConfig,
    TrainingConfig,
    divisors,
)
from model_core.errors import FieldProblem, shown

Rule = Callable[..., Iterator[FieldProblem]]


def cross_section_errors(sections: Mapping[str, Config]) -> Iterator[FieldProblem]:
    """Apply every rule whose sections are all given; a test of a run need not satisfy the rules of a training.

    Args:
        sections: Valid sections by name.

    Returns:
        The problems, found while they are read.
    """
    execution = sections.get("execution")
    trains = not isinstance(execution, ExecutionConfig) or execution.train
    for names, rule in (*_RULES, *(_TRAINING_RULES if trains else ())):
        if all(name in sections for name in names):
            yield from rule(*(sections[name] for name in names))


def check_batch_divides(training: TrainingConfig, processes: int = 1) -> Iterator[FieldProblem]:
    """Check that a step is a whole number of micro batches, equally many for each process.

    Args:
        training: Section `training`; total_batch_size counts the tokens of all processes.
        processes: Number of processes that train together, which the job or the launcher decides.

    Returns:
        The problem, if there is one.
    """
    rows = training.batch_size * training.sequence_length * processes
    total = training.total_batch_size
    if total % rows:
        nearest = tuple(n * rows for n in (total // rows, total // rows + 1) if n)
        shared = f" x {processes} processes" if processes > 1 else ""
        detail = (
            f"{total} is not a multiple of batch_size {training.batch_size} x sequence_length "
            f"{training.sequence_length}{shared} = {rows}; the nearest are {' and '.join(map(str, nearest))}"
        )
        yield FieldProblem("/training/total_batch_size", detail, total, nearest)


def check_tokens_suffice(training: TrainingConfig, tokens: int, processes: int = 1) -> Iterator[FieldProblem]:
    """Check that a training split has at least one batch.

    Args:
        training: Section `training`.
        tokens: Tokens of the training split.
        processes: Number of processes that train together.

    Returns:
        The problem, if there is one.
    """
    length = training.sequence_length
    needed = training.batch_size * processes * length + 1
    if tokens >= needed:
        return
    shared = f" x {processes} processes" if processes > 1 else ""
    detail = (
        f"one batch takes {needed} tokens (batch_size {training.batch_size} x sequence_length {length}{shared} + 1), "
        f"and the training split has {tokens}"
    )
    rows = max(0, tokens - 1) // length // processes
    fitting = [size for size in divisors(training.total_batch_size // length // processes) if size <= rows]
    if fitting:
        detail = f"{detail}; batch_size {max(fitting)} would fit"
        yield FieldProblem("/training/batch_size", detail, training.batch_size, (max(fitting),))
    else:
        detail = f"{detail}: less than one sequence; shorten sequence_length, or prepare more text"
        yield FieldProblem("/training/sequence_length", detail, length)


def model_differences(
    ours: ModelConfig, theirs: ModelConfig, *, there: str, keys: Iterable[str] | None = None
) -> list[str]:
    """Compare two models: whether the parameters of one mean the same in the other.

    Args:
        ours: The model that is asked for.
        theirs: The model that exists.
        there: Where it exists, for the clauses.
        keys: Keys of section `model` to compare one by one. None compares the shapes, so that it does not matter
            how a shape is written.

    Returns:
        One clause for each difference, with both values; none if the models fit.
    """
    if keys is None:
        return tree_differences(ours.shape, theirs.shape, there=there, prefix="model.")
    here, other = ({key: getattr(model, key) for key in sorted(keys)} for model in (ours, theirs))
    return tree_differences(here, other, there=there, prefix="model.")


def tree_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, there: str, prefix: str = "") -> list[str]:
    """Compare two trees of values key by key.

    Args:
        ours: One tree.
        theirs: The other tree.
        there: Where the other tree is, for the clauses.
        prefix: Path of both trees, for the clauses.

    Returns:
        One clause for each difference, with both values.
    """
    found = []
    for key in dict.fromkeys((*ours, *theirs)):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            found += tree_differences(mine, other, there=there, prefix=f"{prefix}{key}.")
        elif mine != other:
            found.append(f"{prefix}{key} is {shown(mine)} here and {shown(other)} in {there}")
    return found


def _sequence_fits_the_model(model: ModelConfig, training: TrainingConfig) -> Iterator[FieldProblem]:
    if training.sequence_length > model.block_size:
        detail = f"{training.sequence_length} is above model.block_size {model.block_size}"
        yield FieldProblem("/training/sequence_length", detail, training.sequence_length, (model.block_size,))


def _vocabulary_holds_every_id(model: ModelConfig, data: DataConfig) -> Iterator[FieldProblem]:
    needed = GPT2_VOCABULARY if data.tokenizer == "gpt2" else data.tokenizer.vocab_size
    if model.vocab_size < needed:
        detail = f"{model.vocab_size} is below the {needed} ids of the tokenizer in data.tokenizer"
        yield FieldProblem("/model/vocab_size", detail, model.vocab_size, (needed, -(-needed // 64) * 64))


def _schedule_is_ordered(training: TrainingConfig) -> Iterator[FieldProblem]:
    if training.min_lr > training.max_lr:
        detail = f"{training.min_lr} is above max_lr {training.max_lr}"
        yield FieldProblem("/training/min_lr", detail, training.min_lr, (training.max_lr,))
    steps, why = training.max_steps, f"max_steps {training.max_steps}"
    if training.max_tokens is not None and (of_tokens := -(-training.max_tokens // training.total_batch_size)) < steps:
        steps, why = of_tokens, f"the {of_tokens} steps of max_tokens {training.max_tokens}"
    if training.warmup_steps >= steps:
        detail = f"{training.warmup_steps} must be below {why}"
        yield FieldProblem("/training/warmup_steps", detail, training.warmup_steps, (steps - 1,))


def _shares_add_up(data: DataConfig) -> Iterator[FieldProblem]:
    total = sum(data.split)
    if abs(total - 1) > 1e-9 or min(data.split) < 0:
        detail = f"shares must not be negative and must sum to 1; these sum to {total:.6g}"
        yield FieldProblem("/data/split", detail, list(data.split), ([0.9, 0.09, 0.01],))


def _source_is_known(data: DataConfig) -> Iterator[FieldProblem]:
    source = data.source
    if source is None or source in BUILTIN_SOURCES or source.startswith("file:") or hub_dataset(source):
        return
    on_the_hub = f"hub:{source.removeprefix('hf:').removeprefix('https://huggingface.co/datasets/')}"
    near = (on_the_hub,) if hub_dataset(on_the_hub) else tuple(get_close_matches(source, SOURCE_SYNTAX, n=2))
    near = near or tuple(form for form in SOURCE_SYNTAX if form[:4] == source[:4])
    what = "names no dataset of the hub" if source.startswith("hub:") else "is not a source"
    advice = f"; did you mean {on_the_hub!r}?" if on_the_hub in near else ""
    yield FieldProblem(
        "/data/source", f"{source!r} {what}; there are: {', '.join(SOURCE_SYNTAX)}{advice}", source, near
    )


def _source_has_what_is_asked(data: DataConfig) -> Iterator[FieldProblem]:
    source = data.source
    if data.revision is not None and (source is None or not hub_dataset(source)):
        why = "there is no data.source" if source is None else f"{source!r} has none: its documents identify it"
        detail = f"a revision is a commit, branch or tag of a dataset of the hub, and {why}; leave it out"
        yield FieldProblem("/data/revision", detail, data.revision, (None,))
    elif data.revision is not None and not re.fullmatch(r"[!-~]{1,200}", data.revision):
        detail = f"{data.revision[:80]!r} is no commit, branch or tag"
        yield FieldProblem("/data/revision", detail, data.revision[:80], ("main",))
    if data.text_column != "text" and source in BUILTIN_SOURCES:
        detail = f"{source!r} has no columns; leave it at 'text'"
        yield FieldProblem("/data/text_column", detail, data.text_column, ("text",))
    if data.documents != "auto" and source in BUILTIN_SOURCES:
        detail = f"{source!r} has documents of its own; leave it at 'auto'"
        yield FieldProblem("/data/documents", detail, data.documents, ("auto",))


def _something_to_do(execution: ExecutionConfig) -> Iterator[FieldProblem]:
    if not (execution.train or execution.test):
        detail = "train and test are both false: nothing would be done; set one of them"
        yield FieldProblem("/execution/train", detail, False, (True,))


def _test_finds_its_checkpoint(
    execution: ExecutionConfig, checkpoint: CheckpointConfig, testing: TestingConfig
) -> Iterator[FieldProblem]:
    wanted = testing.checkpoint_path
    if execution.test and wanted in {"final", "model_final.pt"} and not checkpoint.save_final:
        detail = f"{wanted!r} will not be there: checkpoint.save_final is false"
        yield FieldProblem("/testing/checkpoint_path", detail, wanted, ("latest",))


def _color_map_exists(testing: TestingConfig) -> Iterator[FieldProblem]:
    from matplotlib import colormaps  # heavy, so only validation loads it

    if testing.cmap not in colormaps:
        near = tuple(get_close_matches(testing.cmap, list(colormaps), n=3))
        yield FieldProblem("/testing/cmap", f"no matplotlib colour map {testing.cmap!r}", testing.cmap, near)


_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("data",), _shares_add_up),
    (("data",), _source_is_known),
    (("data",), _source_has_what_is_asked),
    (("execution",), _something_to_do),
    (("testing",), _color_map_exists),
)
_TRAINING_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("model", "training"), _sequence_fits_the_model),
    (("model", "data"), _vocabulary_holds_every_id),
    (("training",), check_batch_divides),
    (("training",), _schedule_is_ordered),
    (("execution", "checkpoint", "testing"), _test_finds_its_checkpoint),
)
