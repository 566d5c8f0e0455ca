"""From a source to a dataset: documents are split, tokenized and streamed to disk.

The files are written in a folder beside their places and moved when all are complete, the training tokens last,
so a dataset is never half ready. A lock makes two that want the same dataset share one preparation.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from model_core.catalogue import HUB_DATASETS, WITHOUT_COLUMNS
from model_core.config import BpeTokenizer, ExperimentConfig
from model_core.data.sources.access import Token
from model_core.data.sources.opening import open_source, revision_of, source_name
from model_core.data.sources.source import Source
from model_core.data.splitting import assigned
from model_core.data.writers import ExampleWriter, TokenWriter
from model_core.errors import DatasetNotReady, InvalidData
from model_core.records.dataset import EXAMPLE_INDEX, EXAMPLES, MANIFEST, SPLITS, TOKENIZER, Dataset, dataset_of
from model_core.records.files import Layout, checked_name, now, sync_directory, write_json
from model_core.stopping import StopRequest
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

log = logging.getLogger(__name__)

DEFAULT_SPLIT = (0.90, 0.09, 0.01)
DEFAULT_SEED = 1337  # of every dataset, whatever the seed of the training: runs with other seeds share the data
_LOCK, _BUILDING = ".lock", ".building"
_REPORT_EVERY = 500
_POLL_S = 5.0

Report = Callable[[int, int, str], None]
TokenizerChoice = Literal["gpt2"] | BpeTokenizer
Shares = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a dataset, beside the documents themselves."""

    source: str
    tokenizer: TokenizerChoice = "gpt2"
    split: Shares = DEFAULT_SPLIT
    text_column: str = "text"
    seed: int = DEFAULT_SEED
    revision: str | None = None


def ensure_dataset(
    config: ExperimentConfig, layout: Layout, *, token: Token | None = None, report: Report | None = None,
    stop: StopRequest | None = None,
) -> Dataset:  # fmt: skip
    """Open the dataset that a configuration means, and prepare it first if it is missing.

    Args:
        config: Its section `data`.
        layout: Where datasets lie.
        token: For a dataset of the hub that not everybody may read.
        report: Told how much is done, of how much, and the unit.
        stop: Asked between documents.

    Raises:
        Stopped: Somebody asked for it.
        DatasetNotReady: It is missing and the configuration names no source; with the command that makes it.
        InvalidData: The source cannot be read, or the dataset that is there was made in another way.
    """
    dataset, data = dataset_of(config, layout), config.data
    if data.source is not None and dataset.missing():
        recipe = Recipe(data.source, data.tokenizer, data.split, data.text_column, revision=data.revision)
        return _prepare(recipe, dataset, token, report or _silent, stop or StopRequest())
    if missing := dataset.missing():
        raise DatasetNotReady(f"there is no {missing[0]}; make it with: {_command(dataset, data.tokenizer, layout)}")
    if dataset.manifest() is None and data.tokenizer != "gpt2":
        raise InvalidData(
            f"dataset {dataset.name!r} has no {MANIFEST}, so its tokens are taken for GPT-2's, and data.tokenizer asks "
            f"for {_asked(data.tokenizer)}; prepare it here, or leave data.tokenizer at gpt2"
        )
    asked: dict[str, Any] = {"tokenizer": _asked(data.tokenizer)}
    if data.source is not None:
        asked |= {"source": source_name(data.source), "split": list(data.split), "text_column": data.text_column}
        if (revision := revision_of(data.source, seed=DEFAULT_SEED, revision=data.revision)) is not None:
            asked["revision"] = revision
    _refuse_other(dataset, asked)
    return dataset


def prepare(
    source: str, directory: Path, *, name: str, tokenizer: TokenizerChoice = "gpt2", split: Shares = DEFAULT_SPLIT,
    text_column: str = "text", seed: int = DEFAULT_SEED, revision: str | None = None, token: Token | None = None,
    report: Report | None = None, stop: StopRequest | None = None,
) -> Dataset:  # fmt: skip
    """Make a dataset; one that is there already and was made in the same way is left as it is.

    Args:
        source: As a configuration names it.
        directory: Where its files go.
        name: What they are called after.
        tokenizer: ``gpt2``, or a BPE to be trained on the training split.
        split: Shares of training, validation and test documents.
        text_column: Which column of a source with columns is the text.
        seed: Of the split, and of generated text.
        revision: Commit, branch or tag of a dataset of the hub.
        token: See `ensure_dataset`.
        report: See `ensure_dataset`.
        stop: See `ensure_dataset`.

    Raises:
        Stopped: Somebody asked for it.
        InvalidConfig: There is no such source.
        InvalidData: The source cannot be read, or the dataset that is there was made in another way.
        DiskFull: Nothing of the dataset is left.
    """
    dataset = Dataset.named(checked_name("dataset", name), directory)
    recipe = Recipe(source, tokenizer, split, text_column, seed, revision)
    return _prepare(recipe, dataset, token, report or _silent, stop or StopRequest())


def _prepare(
    recipe: Recipe, dataset: Dataset, token: Token | None, report: Report, stop: StopRequest
) -> Dataset:  # fmt: skip
    source = open_source(
        recipe.source, seed=recipe.seed, revision=recipe.revision, text_column=recipe.text_column, token=token
    )
    for advice in source.advice:
        log.warning("%s: %s", advice.code, advice.detail)
    dataset.directory.mkdir(parents=True, exist_ok=True)
    with _alone(dataset.directory, report, stop):
        if dataset.missing():
            _refuse_to_overwrite(dataset)
            _build(recipe, source, dataset, report, stop)
    same = {"source": source.name, "revision": source.revision, "split": list(recipe.split), "seed": recipe.seed}
    _refuse_other(dataset, {"tokenizer": _asked(recipe.tokenizer), "text_column": recipe.text_column, **same})
    return dataset


@contextmanager
def _alone(directory: Path, report: Report, stop: StopRequest) -> Iterator[None]:
    """Hold the directory; whoever waits says so, and the kernel frees the lock of a killed process."""
    lock = FileLock(directory / _LOCK)
    while not lock.is_locked:
        stop.check()
        try:
            lock.acquire(timeout=_POLL_S)
        except Timeout:
            report(0, 1, "preparation by another process")
    try:
        yield
    finally:
        lock.release()


def _build(recipe: Recipe, source: Source, dataset: Dataset, report: Report, stop: StopRequest) -> None:
    building = dataset.directory / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    try:
        manifest = _write(recipe, source, dataset, building, report, stop)
        for split in SPLITS[:2]:
            if recipe.split[SPLITS.index(split)] > 0 and not manifest["splits"][split]["documents"]:
                count = sum(facts["documents"] for facts in manifest["splits"].values())
                detail = f"{count} documents are too few for the shares {list(recipe.split)}"
                raise InvalidData(f"source {source.name!r}: {detail}: none falls to {split}")
        places = {MANIFEST: MANIFEST, TOKENIZER: TOKENIZER, EXAMPLES: EXAMPLES, EXAMPLE_INDEX: EXAMPLE_INDEX}
        places |= {f"{split}.npy": dataset.split(split).name for split in reversed(SPLITS)}
        for written, place in places.items():
            (building / written).replace(dataset.directory / place)
        sync_directory(dataset.directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(
    recipe: Recipe, source: Source, dataset: Dataset, building: Path, report: Report, stop: StopRequest
) -> dict[str, Any]:
    """Write every file of the dataset; returns the manifest."""
    tokenizer = _tokenizer(recipe, source, report)
    count = sum(1 for _ in source.documents(0)) if source.count is None else source.count
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    with ExitStack() as stack:
        files = {split: stack.enter_context(TokenWriter(building / f"{split}.npy", dtype)) for split in SPLITS}
        examples = stack.enter_context(ExampleWriter(building / EXAMPLES))
        for done, (split, document) in enumerate(assigned(_texts(source), recipe.split, recipe.seed), 1):
            stop.check()
            tokens = tokenizer.encode(document)
            files[split].add([*tokens, tokenizer.eot], text_bytes=len(document.encode()))
            if split == "test":
                examples.add(document, tokens)
            if done % _REPORT_EVERY == 0 or done == count:
                report(done, count, "documents")
    examples.write_index(building / EXAMPLE_INDEX)
    tokenizer.write(building / TOKENIZER)
    manifest = {
        "schema_version": 1,
        "name": dataset.name,
        "source": source.name,
        "revision": source.revision,
        "origin": dict(source.facts),
        "text_column": recipe.text_column,
        "created_at": now(),
        "tokenizer": _asked_and_made(recipe.tokenizer, tokenizer),
        "split": list(recipe.split),
        "seed": recipe.seed,
        "splits": {split: file.facts(dataset.split(split).name) for split, file in files.items()},
        "examples": examples.facts(EXAMPLES, EXAMPLE_INDEX),
    }
    write_json(building / MANIFEST, manifest)
    return manifest


def _texts(source: Source) -> Iterator[str]:
    return (document.text for document in source.documents(0))


def _tokenizer(recipe: Recipe, source: Source, report: Report) -> Tokenizer:
    if not isinstance(recipe.tokenizer, BpeTokenizer):
        return gpt2_tokenizer()
    documents = assigned(_texts(source), recipe.split, recipe.seed)
    report(0, 1, "tokenizer")
    tokenizer = train_bpe((text for split, text in documents if split == "train"), recipe.tokenizer.vocab_size)
    report(1, 1, "tokenizer")
    return tokenizer


def _asked(tokenizer: TokenizerChoice) -> str:
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BpeTokenizer) else tokenizer


def _asked_and_made(asked: TokenizerChoice, made: Tokenizer) -> dict[str, Any]:
    facts = {"kind": made.kind, "n_vocab": made.n_vocab, "sha256": made.sha256, "file": TOKENIZER}
    return {**facts, "asked": _asked(asked)}


def _refuse_other(dataset: Dataset, asked: dict[str, Any]) -> None:
    """A dataset that is there must be the one that is asked for."""
    if (manifest := dataset.manifest()) is None:
        return  # a user's own files: they are what they are
    made = {**manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    for key, value in asked.items():
        if made.get(key) != value:
            difference = f"was made with {key} {made.get(key)!r}, not {value!r}"
            advice = "ask for that, take another dataset name, or delete the folder"
            raise InvalidData(f"dataset {dataset.name!r} in {dataset.directory} {difference}; {advice}")


def _refuse_to_overwrite(dataset: Dataset) -> None:
    """Files that were not made here are not ours to replace."""
    if dataset.manifest() is not None:
        return
    files = [dataset.directory / MANIFEST, *(dataset.split(split) for split in SPLITS)]
    if present := [file for file in files if file.exists()]:
        raise InvalidData(f"{present[0]} is not of this dataset and would be overwritten; choose another folder")


def _command(dataset: Dataset, tokenizer: TokenizerChoice, layout: Layout) -> str:
    source = dataset.name if dataset.name in {*WITHOUT_COLUMNS, *HUB_DATASETS} else "file:PATH"
    where = f"--data-root {layout.datasets.parent}" if layout.datasets else f"--out {dataset.directory}"
    made_with = "" if tokenizer == "gpt2" else f" --tokenizer {_asked(tokenizer)}"
    return f"python -m model_core.data.prepare --source {source} --name {dataset.name} {where}{made_with}"


def _silent(done: int, of: int, unit: str) -> None:
    pass
