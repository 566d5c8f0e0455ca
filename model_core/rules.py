"""What the sections of a configuration must agree on, and what this version does not offer.

A rule reads one or two sections and yields what is wrong. Rules run on every section that is right in itself,
so one answer can hold all the errors of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from model_core.config import (
    GPT2_VOCABULARY,
    CheckpointConfig,
    Config,
    DataConfig,
    ExecutionConfig,
    ModelConfig,
    TestingConfig,
    TrainingConfig,
)
from model_core.errors import FieldProblem

Rule = Callable[..., Iterator[FieldProblem]]


def disagreements(sections: Mapping[str, Config]) -> Iterator[FieldProblem]:
    """Apply every rule whose sections are all given; a test of a run is not held to what only training needs."""
    execution = sections.get("execution")
    trains = not isinstance(execution, ExecutionConfig) or execution.train
    for names, rule in (*_RULES, *(_TRAINING_RULES if trains else ())):
        if all(name in sections for name in names):
            yield from rule(*(sections[name] for name in names))
    yield from _not_built(sections)


def _sequence_fits_the_model(model: ModelConfig, training: TrainingConfig) -> Iterator[FieldProblem]:
    if training.sequence_length > model.block_size:
        detail = f"{training.sequence_length} is above model.block_size {model.block_size}"
        yield FieldProblem("/training/sequence_length", detail, training.sequence_length, (model.block_size,))


def _vocabulary_holds_every_id(model: ModelConfig, data: DataConfig) -> Iterator[FieldProblem]:
    needed = GPT2_VOCABULARY if data.tokenizer == "gpt2" else data.tokenizer.vocab_size
    if model.vocab_size < needed:
        detail = f"{model.vocab_size} is below the {needed} ids of the tokenizer in data.tokenizer"
        yield FieldProblem("/model/vocab_size", detail, model.vocab_size, (needed, -(-needed // 64) * 64))


def _step_is_whole_batches(training: TrainingConfig) -> Iterator[FieldProblem]:
    rows = training.batch_size * training.sequence_length
    total = training.total_batch_size
    if total % rows:
        nearest = tuple(n * rows for n in (total // rows, total // rows + 1) if n)
        detail = (
            f"{total} is not a multiple of batch_size {training.batch_size} x sequence_length "
            f"{training.sequence_length} = {rows}; the nearest are {' and '.join(map(str, nearest))}"
        )
        yield FieldProblem("/training/total_batch_size", detail, total, nearest)


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


def _something_to_do(execution: ExecutionConfig) -> Iterator[FieldProblem]:
    if not (execution.train or execution.test):
        detail = "train and test are both false: nothing would be done; set one of them"
        yield FieldProblem("/execution/train", detail, False, (True,))


def _test_finds_its_checkpoint(
    execution: ExecutionConfig, checkpoint: CheckpointConfig, testing: TestingConfig
) -> Iterator[FieldProblem]:
    wanted = testing.checkpoint_path
    kept = {"best": checkpoint.save_best, "final": checkpoint.save_final}
    for word, is_kept in kept.items():
        if execution.test and wanted in {word, f"model_{word}.pt"} and not is_kept:
            detail = f"{wanted!r} will not be there: checkpoint.save_{word} is false"
            yield FieldProblem("/testing/checkpoint_path", detail, wanted, ("latest",))


def _colours_exist(testing: TestingConfig) -> Iterator[FieldProblem]:
    from difflib import get_close_matches

    from matplotlib import colormaps  # heavy: loaded only when a configuration is checked

    if testing.cmap not in colormaps:
        near = tuple(get_close_matches(testing.cmap, list(colormaps), n=3))
        yield FieldProblem("/testing/cmap", f"no matplotlib colour map {testing.cmap!r}", testing.cmap, near)


_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("data",), _shares_add_up),
    (("execution",), _something_to_do),
    (("testing",), _colours_exist),
)
_TRAINING_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("model", "training"), _sequence_fits_the_model),
    (("model", "data"), _vocabulary_holds_every_id),
    (("training",), _step_is_whole_batches),
    (("training",), _schedule_is_ordered),
    (("execution", "checkpoint", "testing"), _test_finds_its_checkpoint),
)

# Keys whose feature is not built yet, with the only value they may have.
NOT_BUILT: Mapping[str, Mapping[str, Any]] = {
    "data": {"revision": None, "text_column": "text", "dedupe": False},
}
SOURCES = ("stories", "file:PATH")


def _not_built(sections: Mapping[str, Config]) -> Iterator[FieldProblem]:
    for section, keys in NOT_BUILT.items():
        for key, only in keys.items():
            value = getattr(sections[section], key) if section in sections else only
            if value != only:
                detail = f"{section}.{key} is not available in this version; leave it at {only!r}"
                yield FieldProblem(f"/{section}/{key}", detail, value, (only,), code="not_available")
    data = sections.get("data")
    if isinstance(data, DataConfig) and data.source is not None:
        yield from _source_is_known(data.source)


def _source_is_known(source: str) -> Iterator[FieldProblem]:
    if source == "stories" or source.startswith("file:"):
        return
    named = source in {"pydoc", "babylm", "tinystories", "wikitext", "openwebtext"} or source.startswith("hub:")
    what = "is not available in this version" if named else "is not a source"
    code = "not_available" if named else "invalid"
    detail = f"{source!r} {what}; there are: {', '.join(SOURCES)}"
    yield FieldProblem("/data/source", detail, source, SOURCES, code=code)
