"""Writes the files of a dataset: read documents, tokenize them on several threads, write them in order.

The bytes depend only on the spec and the documents, not on the number of threads or on interruptions. The manifest
records what the dataset is, where it came from, and the hash of each file.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_core.config import BpeTokenizer
from model_core.data.chunking import CHUNK_CHARACTERS, Chunk, DocumentReader, Encoded, assigned, chunks, encode_chunk
from model_core.data.dataset_spec import DatasetSpec, tokenizer_name
from model_core.data.encoder import BulkEncoder, bulk_encoder
from model_core.data.sources.base import Source
from model_core.data.writer import RECORD, DatasetBuild, OpenFiles
from model_core.entrypoint import ShutdownSignal
from model_core.errors import InvalidData
from model_core.storage.dataset import (
    EXAMPLE_INDEX,
    EXAMPLES,
    SPLITS,
    TOKENIZER,
    Dataset,
    load_tokenizer,
    save_tokenizer,
    shard_of,
)
from model_core.storage.files import full_disk_named, now, require_space, sha256_of
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

Emit = Callable[..., Any]

_EVERY_S = 1.0


class ProgressReporter:
    """Emits ``progress`` events, at most one a second.

    Args:
        emit: Told ``progress``.
        source: Whose documents are counted.
        unit: What is counted.
        done: How many were done before.
        text_bytes: What text those had.
    """

    def __init__(self, emit: Emit, source: Source, unit: str, *, done: int = 0, text_bytes: int = 0) -> None:
        self._emit, self._source, self._unit = emit, source, unit
        self._done, self._text_bytes = done, text_bytes
        self._began, self._next = time.monotonic(), 0.0

    def report(self, done: int, text_bytes: int, *, at_once: bool = False) -> None:
        """Emit the event, if it is time.

        Args:
            done: How many are done, with those before.
            text_bytes: What text all these have.
            at_once: Do not wait for the time.
        """
        present = time.monotonic()
        if not at_once and present < self._next:
            return
        self._next = present + _EVERY_S
        elapsed = max(present - self._began, 1e-9)
        bytes_per_s = (text_bytes - self._text_bytes) / elapsed
        eta_s = self._eta_s(done, text_bytes, (done - self._done) / elapsed, bytes_per_s)
        facts = {"mb_per_s": round(bytes_per_s / 1e6, 2), "eta_s": eta_s}
        self._emit("progress", done=done, of=self._source.count, unit=self._unit, **facts)

    def _eta_s(self, done: int, text_bytes: int, documents_per_s: float, bytes_per_s: float) -> float | None:
        """Seconds to go, by documents where their number is known, else by text; None where neither is."""
        count, total = self._source.count, self._source.text_bytes
        if count is not None:
            left, speed = float(count - done), documents_per_s
        else:
            left, speed = float(total - text_bytes) if total is not None else 0.0, bytes_per_s
        return round(max(0.0, left) / speed, 1) if speed and (count is not None or total is not None) else None


COMMIT_EVERY_S = 2.0
_MOST_THREADS = 16  # more would wait for the one that reads
_BYTES_A_TOKEN = 4  # of text, roughly
_EXAMPLE_BYTES_A_TOKEN = 6.5


@dataclass(frozen=True)
class PrepareContext:
    """What a preparation works with, beside what it makes.

    Attributes:
        emit: Told ``progress`` and ``resumed``.
        stop: Asked between chunks.
        threads: How many tokenize; None for one more than there are cores.
        commit_every_s: Between records of what is safe.
        chunk_characters: What one thread takes at a time.
    """

    emit: Emit
    stop: ShutdownSignal
    threads: int | None = None
    commit_every_s: float = COMMIT_EVERY_S
    chunk_characters: int = CHUNK_CHARACTERS


def make_files(spec: DatasetSpec, source: Source, dataset: Dataset, context: PrepareContext) -> int:
    """Make the files of a dataset, going on where an earlier process was cut off.

    Args:
        spec: How.
        source: From what.
        dataset: Where; nobody else is at it.
        context: The rest.

    Returns:
        How many documents were tokenized here.

    Raises:
        Stopped: Somebody asked for it; what is done is kept.
        DiskFull: Likewise; or nothing was begun.
        InvalidData: The source has too little, or cannot be read; nothing is kept.
    """
    build = DatasetBuild(dataset, _identity(spec, source, dataset))
    before = build.progress.kept
    if before:
        done, of = build.progress.read, source.count
        context.emit("resumed", file=RECORD, step=done, done=done, of=of, unit="documents")
    try:
        if not build.progress.places:
            _make(spec, source, dataset, build, context)
        build.move()
    except InvalidData:
        build.discard()
        raise
    return build.progress.kept - before


def _identity(spec: DatasetSpec, source: Source, dataset: Dataset) -> dict[str, Any]:
    """Whatever decides the bytes that an earlier process left."""
    names = [dataset.name, *(dataset.split(split).name for split in SPLITS)]
    origin = {"source": source.name, "revision": source.revision}
    return {"format": 1, "names": names, **origin, **spec.manifest_fields(), "shard_bytes": spec.shard_bytes}


def _make(spec: DatasetSpec, source: Source, dataset: Dataset, build: DatasetBuild, context: PrepareContext) -> None:
    with full_disk_named(build.directory):
        tokenizer = _tokenizer(spec, source, build, context)
        dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
        _check_space(spec, source, build, int(dtype[-1]))
        with closing(build.open(dtype, spec.shard_bytes, dedupe=spec.dedupe)) as files:
            read = _write(spec, source, build, files, bulk_encoder(tokenizer), dtype, context)
            _check_shares(spec, source, build)
            shards = files.finish()
        build.complete(manifest_of(spec, source, dataset, build, tokenizer, shards, read))


def _write(
    spec: DatasetSpec, source: Source, build: DatasetBuild, files: OpenFiles, encoder: BulkEncoder, dtype: str,
    context: PrepareContext,
) -> int:  # fmt: skip
    """Write what the record does not have yet; returns how many documents the source has."""
    progress = build.progress
    reader = DocumentReader(source, spec, skip=progress.read, hashes=build.hashes())
    reporter = ProgressReporter(context.emit, source, "documents", done=progress.read, text_bytes=progress.text_bytes)
    counts = {"kept": progress.kept, "examples": progress.splits["test"].documents}
    work = chunks(reader, spec, characters=context.chunk_characters, **counts)
    committed = time.monotonic()
    with closing(_encoded(work, encoder, dtype, context.threads or _default_threads())) as results:
        for encoded in results:
            files.add(encoded)
            reporter.report(progress.read, progress.text_bytes)
            if context.stop() or time.monotonic() - committed >= context.commit_every_s:
                files.commit()
                context.stop.check()
                committed = time.monotonic()
    reporter.report(reader.read, progress.text_bytes, at_once=True)
    return reader.read


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


def _tokenizer(spec: DatasetSpec, source: Source, build: DatasetBuild, context: PrepareContext) -> Tokenizer:
    """The dataset's tokenizer, kept as soon as it is known."""
    file = build.directory / TOKENIZER
    if file.exists():
        return load_tokenizer(file)
    tokenizer = gpt2_tokenizer()
    if isinstance(spec.tokenizer, BpeTokenizer):
        tokenizer = train_bpe(_training_texts(spec, source, context), spec.tokenizer.vocab_size)
        context.stop.check()  # a stop ended the texts early
    save_tokenizer(file, tokenizer)
    return tokenizer


def _training_texts(spec: DatasetSpec, source: Source, context: PrepareContext) -> Iterator[str]:
    reader, text_bytes = DocumentReader(source, spec), 0
    reporter = ProgressReporter(context.emit, source, "documents for the tokenizer")
    for split, part in assigned(reader, spec.split, spec.seed):
        if context.stop():
            return
        text_bytes += len(part.text)
        reporter.report(reader.read, text_bytes)
        if split == "train":
            yield part.text
    reporter.report(reader.read, text_bytes, at_once=True)


def _check_space(spec: DatasetSpec, source: Source, build: DatasetBuild, id_bytes: int) -> None:
    """Refuse what cannot fit, as far as the source says how much text it has."""
    if source.text_bytes is None:
        return
    tokens = source.text_bytes / _BYTES_A_TOKEN
    examples = spec.split[SPLITS.index("test")] * (source.text_bytes + tokens * _EXAMPLE_BYTES_A_TOKEN)
    require_space(build.directory / "dataset", int(tokens * id_bytes + examples) - build.size_bytes())


def _check_shares(spec: DatasetSpec, source: Source, build: DatasetBuild) -> None:
    count = build.progress.kept
    if not count:
        raise InvalidData(f"source {source.name!r} is empty; a dataset needs text")
    for split, share in zip(SPLITS[:2], spec.split, strict=False):
        if share > 0 and not build.progress.splits[split].documents:
            detail = f"{count} documents are too few for the shares {list(spec.split)}"
            raise InvalidData(f"source {source.name!r}: {detail}: none falls to {split}")


def manifest_of(
    spec: DatasetSpec, source: Source, dataset: Dataset, build: DatasetBuild, tokenizer: Tokenizer,
    shards: Mapping[str, Sequence[Path]], read: int,
) -> dict[str, Any]:  # fmt: skip
    """Build the manifest of a dataset whose files are complete.

    Args:
        spec: How it was made.
        source: From what.
        dataset: Names of its files.
        build: Where they lie, and what they hold.
        tokenizer: What made its ids.
        shards: The token files of every split.
        read: Documents of the source, duplicates among them.

    Returns:
        The content of manifest.json.
    """
    progress = build.progress
    made = {"kind": tokenizer.kind, "n_vocab": tokenizer.n_vocab, "sha256": tokenizer.sha256, "file": TOKENIZER}
    counted = {split: vars(counts) for split, counts in progress.splits.items()}
    return {
        "schema_version": 1,
        "name": dataset.name,
        "source": source.name,
        "revision": source.revision,
        "created_at": now(),
        **spec.manifest_fields(),
        "tokenizer": {**made, "asked": tokenizer_name(spec.tokenizer)},
        "documents": read,
        "duplicates": read - progress.kept if spec.dedupe else None,
        "splits": {split: {**counted[split], **_files(dataset.split(split), paths)} for split, paths in shards.items()},
        "examples": {
            **_file(build.directory / EXAMPLES, EXAMPLES),
            "index": EXAMPLE_INDEX,
            "count": progress.splits["test"].documents,
        },
        "categories": {name: vars(counts) for name, counts in progress.categories.items()} or None,
        "origin": dict(source.facts),
    }


def _files(place: Path, written: Sequence[Path]) -> dict[str, Any]:
    """Those of a split; several together have no hash of their own."""
    arrays = [np.load(path, mmap_mode="r") for path in written]
    dtype = {"dtype": arrays[0].dtype.name}
    if len(written) == 1:
        return {**_file(written[0], place.name), **dtype}
    files = [
        {**_file(path, shard_of(place, number).name), "tokens": array.size}
        for number, (path, array) in enumerate(zip(written, arrays, strict=True))
    ]
    size_bytes = sum(file["size_bytes"] for file in files)
    return {"file": place.name, "files": files, "size_bytes": size_bytes, "sha256": None, **dtype}


def _file(path: Path, name: str) -> dict[str, Any]:
    return {"file": name, "size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
