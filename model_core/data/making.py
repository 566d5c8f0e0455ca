"""Makes the files of a dataset: documents are read, tokenized by several threads, and written in their order.

The bytes depend on recipe and documents alone: not on the number of threads, nor on how often the work was cut off.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from model_core.config import BpeTokenizer
from model_core.data.building import RECORD, Building, Writing
from model_core.data.chunks import CHUNK_CHARACTERS, Chunk, Encoded, Reading, chunks, encode_chunk
from model_core.data.encoder import BulkEncoder, bulk_encoder
from model_core.data.manifest import manifest_of
from model_core.data.pace import Emit, Pace
from model_core.data.recipe import Recipe
from model_core.data.sources.source import Source
from model_core.data.splitting import assigned
from model_core.errors import InvalidData
from model_core.records.dataset import SPLITS, TOKENIZER, Dataset
from model_core.records.space import full_disk_named, require_space
from model_core.stopping import StopRequest
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

COMMIT_EVERY_S = 2.0
_MOST_THREADS = 16  # more would wait for the one that reads
_BYTES_A_TOKEN = 4  # of text, roughly
_EXAMPLE_BYTES_A_TOKEN = 6.5


@dataclass(frozen=True)
class Surroundings:
    """What a preparation works with, beside what it makes.

    Attributes:
        emit: Told ``progress`` and ``resumed``.
        stop: Asked between chunks.
        threads: How many tokenize; None for one more than there are cores.
        commit_every_s: Between records of what is safe.
        chunk_characters: What one thread takes at a time.
    """

    emit: Emit
    stop: StopRequest
    threads: int | None = None
    commit_every_s: float = COMMIT_EVERY_S
    chunk_characters: int = CHUNK_CHARACTERS


def make_files(recipe: Recipe, source: Source, dataset: Dataset, around: Surroundings) -> int:
    """Make the files of a dataset, going on where an earlier process was cut off.

    Args:
        recipe: How.
        source: From what.
        dataset: Where; nobody else is at it.
        around: The rest.

    Returns:
        How many documents were tokenized here.

    Raises:
        Stopped: Somebody asked for it; what is done is kept.
        DiskFull: Likewise; or nothing was begun.
        InvalidData: The source has too little, or cannot be read; nothing is kept.
    """
    building = Building(dataset, _identity(recipe, source, dataset))
    before = building.ledger.kept
    if before:
        done, of = building.ledger.read, source.count
        around.emit("resumed", file=RECORD, step=done, done=done, of=of, unit="documents")
    try:
        if not building.ledger.places:
            _make(recipe, source, dataset, building, around)
        building.move()
    except InvalidData:
        building.discard()
        raise
    return building.ledger.kept - before


def _identity(recipe: Recipe, source: Source, dataset: Dataset) -> dict[str, Any]:
    """Whatever decides the bytes that an earlier process left."""
    names = [dataset.name, *(dataset.split(split).name for split in SPLITS)]
    origin = {"source": source.name, "revision": source.revision}
    return {"format": 1, "names": names, **origin, **recipe.promises(), "shard_bytes": recipe.shard_bytes}


def _make(recipe: Recipe, source: Source, dataset: Dataset, building: Building, around: Surroundings) -> None:
    with full_disk_named(building.directory):
        tokenizer = _tokenizer(recipe, source, building, around)
        dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
        _check_space(recipe, source, building, int(dtype[-1]))
        with closing(building.open(dtype, recipe.shard_bytes, dedupe=recipe.dedupe)) as writing:
            read = _write(recipe, source, building, writing, bulk_encoder(tokenizer), dtype, around)
            _check_shares(recipe, source, building)
            shards = writing.finish()
        building.complete(manifest_of(recipe, source, dataset, building, tokenizer, shards, read))


def _write(
    recipe: Recipe, source: Source, building: Building, writing: Writing, encoder: BulkEncoder, dtype: str,
    around: Surroundings,
) -> int:  # fmt: skip
    """Write what the record does not have yet; returns how many documents the source has."""
    ledger = building.ledger
    reading = Reading(source, recipe, skip=ledger.read, hashes=building.hashes())
    pace = Pace(around.emit, source, "documents", done=ledger.read, text_bytes=ledger.text_bytes)
    counts = {"kept": ledger.kept, "examples": ledger.splits["test"].documents}
    work = chunks(reading, recipe, characters=around.chunk_characters, **counts)
    committed = time.monotonic()
    with closing(_encoded(work, encoder, dtype, around.threads or _default_threads())) as results:
        for encoded in results:
            writing.add(encoded)
            pace.tell(ledger.read, ledger.text_bytes)
            if around.stop() or time.monotonic() - committed >= around.commit_every_s:
                writing.commit()
                around.stop.check()
                committed = time.monotonic()
    pace.tell(reading.read, ledger.text_bytes, at_once=True)
    return reading.read


def _encoded(work: Iterable[Chunk], encoder: BulkEncoder, dtype: str, threads: int) -> Generator[Encoded]:
    """Encode chunks side by side; they come in their order, and few are in memory at a time."""
    pending: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
    try:
        for chunk in work:
            pending.append(pool.submit(encode_chunk, chunk, encoder, dtype))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores + 1, _MOST_THREADS)  # one of them waits for the interpreter, now and then


def _tokenizer(recipe: Recipe, source: Source, building: Building, around: Surroundings) -> Tokenizer:
    """The dataset's tokenizer, kept as soon as it is known."""
    file = building.directory / TOKENIZER
    if file.exists():
        return Tokenizer.read(file)
    tokenizer = gpt2_tokenizer()
    if isinstance(recipe.tokenizer, BpeTokenizer):
        tokenizer = train_bpe(_training_texts(recipe, source, around), recipe.tokenizer.vocab_size)
        around.stop.check()  # a stop ended the texts early
    tokenizer.write(file)
    return tokenizer


def _training_texts(recipe: Recipe, source: Source, around: Surroundings) -> Iterator[str]:
    reading, text_bytes = Reading(source, recipe), 0
    pace = Pace(around.emit, source, "documents for the tokenizer")
    for split, part in assigned(reading, recipe.split, recipe.seed):
        if around.stop():
            return
        text_bytes += len(part.text)
        pace.tell(reading.read, text_bytes)
        if split == "train":
            yield part.text
    pace.tell(reading.read, text_bytes, at_once=True)


def _check_space(recipe: Recipe, source: Source, building: Building, id_bytes: int) -> None:
    """Refuse what cannot fit, as far as the source says how much text it has."""
    if source.text_bytes is None:
        return
    tokens = source.text_bytes / _BYTES_A_TOKEN
    examples = recipe.split[SPLITS.index("test")] * (source.text_bytes + tokens * _EXAMPLE_BYTES_A_TOKEN)
    require_space(building.directory / "dataset", int(tokens * id_bytes + examples) - building.size_bytes())


def _check_shares(recipe: Recipe, source: Source, building: Building) -> None:
    count = building.ledger.kept
    if not count:
        raise InvalidData(f"source {source.name!r} is empty; a dataset needs text")
    for split, share in zip(SPLITS[:2], recipe.split, strict=False):
        if share > 0 and not building.ledger.splits[split].documents:
            detail = f"{count} documents are too few for the shares {list(recipe.split)}"
            raise InvalidData(f"source {source.name!r}: {detail}: none falls to {split}")
