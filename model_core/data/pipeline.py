"""Builds the files of a dataset: reads documents, tokenizes them on several threads and writes them in order.

The bytes depend only on the spec and the documents, not on the number of threads or on interruptions. The manifest
records how the dataset was made, its source and the hash of each file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_core.config import BpeTokenizer
from model_core.data.chunking import (
    CHUNK_CHARACTERS,
    Chunk,
    DocumentReader,
    Encoded,
    assign_splits,
    encode_chunk,
    make_chunks,
)
from model_core.data.dataset_spec import DatasetSpec, tokenizer_name
from model_core.data.encoder import BulkEncoder, bulk_encoder
from model_core.data.sources.base import BadDocuments, Source
from model_core.data.writer import PROGRESS_FILE, DatasetBuild, OpenFiles
from model_core.entrypoint import ShutdownSignal
from model_core.errors import InvalidData
from model_core.hardware.process_environment import usable_cores
from model_core.storage.data_identity import manifest_data_sha256
from model_core.storage.dataset import (
    EXAMPLE_INDEX,
    EXAMPLES,
    SPLITS,
    TOKENIZER,
    Dataset,
    load_tokenizer,
    save_tokenizer,
    shard_path,
)
from model_core.storage.files import now, require_space, sha256_of, translate_disk_full
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

Emit = Callable[..., Any]

COMMIT_EVERY_S = 2.0
_MAX_THREADS = 16  # more would wait for the thread that reads
_BYTES_PER_TOKEN = 4  # approximate size of the text of a token
_EXAMPLE_BYTES_PER_TOKEN = 6.5
_REPORT_EVERY_S = 1.0
_POLL_S, _STOP_S = 0.2, 1.0


@dataclass(frozen=True)
class PrepareContext:
    """Callbacks and options of a preparation that do not affect the files.

    Attributes:
        emit: Receives the events ``progress`` and ``resumed``.
        stop: Checked between chunks.
        threads: Number of tokenizing threads; None for one more than the number of cores.
        commit_every_s: Seconds between commits.
        chunk_characters: Approximate size of a chunk.
    """

    emit: Emit
    stop: ShutdownSignal
    threads: int | None = None
    commit_every_s: float = COMMIT_EVERY_S
    chunk_characters: int = CHUNK_CHARACTERS


def make_files(spec: DatasetSpec, source: Source, dataset: Dataset, context: PrepareContext) -> int:
    """Make the files of a dataset, and resume an interrupted build.

    Args:
        spec: Spec of the dataset.
        source: Source of the documents.
        dataset: Files to make; the caller holds the lock of their directory.
        context: Callbacks and options.

    Returns:
        Number of documents that this call tokenized.

    Raises:
        Stopped: A stop was requested; completed work is kept.
        DiskFull: The disk is full, or too small for the dataset; completed work is kept.
        BadDocuments: Too many documents cannot be read; completed work is kept.
        InvalidData: The source has too few documents or cannot be read; nothing is kept.
    """
    build = DatasetBuild(dataset, _identity(spec, source, dataset))
    before = build.progress.kept
    if before:
        done = build.progress.read
        context.emit("resumed", file=PROGRESS_FILE, step=done, done=done, of=source.count, unit="documents")
    try:
        if not build.progress.places:
            _build_files(spec, source, dataset, build, context)
        build.publish()
    except BadDocuments:  # the same build continues when they are skipped
        raise
    except InvalidData:
        build.discard()
        raise
    return build.progress.kept - before


def build_manifest(
    spec: DatasetSpec, source: Source, dataset: Dataset, build: DatasetBuild, tokenizer: Tokenizer,
    shards: Mapping[str, Sequence[Path]], read: int,
) -> dict[str, Any]:  # fmt: skip
    """Build the manifest of a dataset whose files are complete.

    Args:
        spec: Spec of the dataset.
        source: Source of the documents.
        dataset: Name of the dataset and of its files.
        build: Build with the complete files and their counts.
        tokenizer: Tokenizer of the dataset.
        shards: Token files by split.
        read: Documents of the source, including duplicates.

    Returns:
        The content of manifest.json.
    """
    progress = build.progress
    actual = {"kind": tokenizer.kind, "n_vocab": tokenizer.n_vocab, "sha256": tokenizer.sha256, "file": TOKENIZER}
    splits = {
        split: {**vars(progress.splits[split]), **_file_entries(dataset.split(split), paths)}
        for split, paths in shards.items()
    }
    return {
        "schema_version": 1,
        "name": dataset.name,
        "source": source.name,
        "revision": source.revision,
        "created_at": now(),
        **spec.manifest_fields(),
        "tokenizer": {**actual, "asked": tokenizer_name(spec.tokenizer)},
        "data_sha256": manifest_data_sha256(splits, tokenizer.sha256),
        "documents": read,
        "duplicates": read - progress.kept if spec.dedupe else None,
        "reading": _reading(source, build),
        "splits": splits,
        "examples": {
            **_file_entry(build.directory / EXAMPLES, EXAMPLES),
            "index": EXAMPLE_INDEX,
            "count": progress.splits["test"].documents,
        },
        "categories": {name: vars(counts) for name, counts in progress.categories.items()} or None,
        "origin": dict(source.facts),
    }


class ProgressReporter:
    """Emits ``progress`` events, at most one per second.

    Args:
        emit: Receives the events.
        source: Source whose documents are counted.
        unit: Unit of the count.
        done: Documents that earlier processes completed.
        text_bytes: Bytes of text in these documents.
    """

    def __init__(self, emit: Emit, source: Source, unit: str, *, done: int = 0, text_bytes: int = 0) -> None:
        self._emit, self._source, self._unit = emit, source, unit
        self._done, self._text_bytes = done, text_bytes
        self._started_at, self._report_at = time.monotonic(), 0.0

    def report(self, done: int, text_bytes: int, *, force: bool = False) -> None:
        """Emit an event, unless the previous one is too recent.

        Args:
            done: Documents completed in total.
            text_bytes: Bytes of text in these documents.
            force: Emit the event in any case.
        """
        present = time.monotonic()
        if not force and present < self._report_at:
            return
        self._report_at = present + _REPORT_EVERY_S
        elapsed_s = max(present - self._started_at, 1e-9)
        bytes_per_s = (text_bytes - self._text_bytes) / elapsed_s
        eta_s = self._eta_s(done, text_bytes, (done - self._done) / elapsed_s, bytes_per_s)
        speed = {"mb_per_s": round(bytes_per_s / 1e6, 2), "eta_s": eta_s}
        self._emit("progress", done=done, of=self._source.count, unit=self._unit, **speed)

    def _eta_s(self, done: int, text_bytes: int, documents_per_s: float, bytes_per_s: float) -> float | None:
        """Estimate the remaining seconds from the documents, else from the text; None if neither total is known."""
        count, total = self._source.count, self._source.text_bytes
        if count is not None:
            left, speed = float(count - done), documents_per_s
        else:
            left, speed = float(total - text_bytes) if total is not None else 0.0, bytes_per_s
        return max(0.1, round(left / speed, 1)) if speed and left > 0 else None  # work that is not counted follows


def _identity(spec: DatasetSpec, source: Source, dataset: Dataset) -> dict[str, Any]:
    """Return everything that determines the bytes of the files."""
    names = [dataset.name, *(dataset.split(split).name for split in SPLITS)]
    origin = {"source": source.name, "revision": source.revision}
    fields = spec.manifest_fields()
    fields["asked"] = {key: value for key, value in fields["asked"].items() if key != "on_bad_document"}
    return {"format": 2, "names": names, **origin, **fields, "shard_bytes": spec.shard_bytes}


def _reading(source: Source, build: DatasetBuild) -> dict[str, Any]:
    """Describe how the source was read: its documents and their lengths in characters, and what was found in them."""
    progress, lengths = build.progress, build.lengths()  # lengths: (N,)
    return {
        "read_as": source.name,
        "documents": progress.kept,
        "shortest": int(lengths.min()),
        "median": int(np.median(lengths)),
        "longest": int(lengths.max()),
        "first": list(progress.first),
        "special_texts": progress.special_texts,
        "zero_bytes": progress.zero_bytes,
        "bad_documents": {"count": 0, "first": []},
        **source.reading(),
    }


def _build_files(
    spec: DatasetSpec, source: Source, dataset: Dataset, build: DatasetBuild, context: PrepareContext
) -> None:
    with translate_disk_full(build.directory):
        tokenizer = _tokenizer(spec, source, build, context)
        dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
        _check_space(spec, source, build, int(dtype[-1]))
        with closing(build.open(dtype, spec.shard_bytes, dedupe=spec.dedupe)) as files:
            read = _write_documents(spec, source, build, files, bulk_encoder(tokenizer), dtype, context)
            _check_shares(spec, source, build)
            shards = files.finish()
        build.mark_complete(build_manifest(spec, source, dataset, build, tokenizer, shards, read))


def _write_documents(
    spec: DatasetSpec, source: Source, build: DatasetBuild, files: OpenFiles, encoder: BulkEncoder, dtype: str,
    context: PrepareContext,
) -> int:  # fmt: skip
    """Write the documents that are not committed yet; return the number of documents of the source."""
    progress = build.progress
    reader = DocumentReader(source, spec, skip=progress.read, hashes=build.hashes())
    reporter = ProgressReporter(context.emit, source, "documents", done=progress.read, text_bytes=progress.text_bytes)
    counts = {"kept": progress.kept, "examples": progress.splits["test"].documents}
    chunks = make_chunks(reader, spec, characters=context.chunk_characters, **counts)
    committed_at = time.monotonic()
    with closing(_encode_in_order(chunks, encoder, dtype, context.threads or _default_threads())) as results:
        try:
            for encoded in results:
                files.add(encoded)
                reporter.report(progress.read, progress.text_bytes)
                if context.stop() or time.monotonic() - committed_at >= context.commit_every_s:
                    files.commit()
                    context.stop.check()
                    committed_at = time.monotonic()
        except BadDocuments:
            files.commit()
            raise
    reporter.report(reader.read, progress.text_bytes, force=True)
    return reader.read


def _encode_in_order(chunks: Iterable[Chunk], encoder: BulkEncoder, dtype: str, threads: int) -> Generator[Encoded]:
    """Encode chunks in parallel and yield them in order; the number of chunks in memory is bounded."""
    pending: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
    try:
        for chunk in chunks:
            pending.append(pool.submit(encode_chunk, chunk, encoder, dtype))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_threads() -> int:
    return min(usable_cores() + 1, _MAX_THREADS)  # one more than cores, because threads sometimes wait for the GIL


def _tokenizer(spec: DatasetSpec, source: Source, build: DatasetBuild, context: PrepareContext) -> Tokenizer:
    """Load the tokenizer of the build, or train and save it."""
    file = build.directory / TOKENIZER
    if file.exists():
        return load_tokenizer(file)
    tokenizer = gpt2_tokenizer()
    if isinstance(spec.tokenizer, BpeTokenizer):
        tokenizer = _train_tokenizer(_training_texts(spec, source, context), spec.tokenizer.vocab_size, context)
    save_tokenizer(file, tokenizer)
    return tokenizer


def _train_tokenizer(texts: Iterator[str], vocab_size: int, context: PrepareContext) -> Tokenizer:
    """Train on another thread: after the last text no Python code runs there, so a signal would have to wait."""
    trained, are_read = Future[Tokenizer](), threading.Event()

    def read() -> Iterator[str]:
        yield from texts
        are_read.set()

    def train() -> None:
        try:
            trained.set_result(train_bpe(read(), vocab_size))
        except BaseException as error:  # noqa: BLE001 - raised again by `result` on the caller's thread
            trained.set_exception(error)
        are_read.set()

    threading.Thread(target=train, name="train-tokenizer", daemon=True).start()
    are_read.wait()  # a stop ends the texts early
    report_at = 0.0
    while not trained.done():
        if time.monotonic() >= report_at:
            context.emit("progress", done=0, of=vocab_size, unit="ids of the tokenizer", eta_s=None)
            report_at = time.monotonic() + _REPORT_EVERY_S
        wait([trained], timeout=_POLL_S)
        if context.stop():
            wait([trained], timeout=_STOP_S)  # few texts were read if the stop came early
            break
    context.stop.check()
    return trained.result()


def _training_texts(spec: DatasetSpec, source: Source, context: PrepareContext) -> Iterator[str]:
    reader, text_bytes = DocumentReader(source, spec), 0
    reporter = ProgressReporter(context.emit, source, "documents for the tokenizer")
    for split, document in assign_splits(reader, spec.split, spec.seed):
        if context.stop():
            return
        text_bytes += len(document.text)
        reporter.report(reader.read, text_bytes)
        if split == "train":
            yield document.text
    reporter.report(reader.read, text_bytes, force=True)


def _check_space(spec: DatasetSpec, source: Source, build: DatasetBuild, id_bytes: int) -> None:
    """Refuse a dataset that does not fit on the disk, if the source gives the size of its text."""
    if source.text_bytes is None:
        return
    tokens = source.text_bytes / _BYTES_PER_TOKEN
    examples = spec.split[SPLITS.index("test")] * (source.text_bytes + tokens * _EXAMPLE_BYTES_PER_TOKEN)
    require_space(build.directory / "dataset", int(tokens * id_bytes + examples) - build.size_bytes())


def _check_shares(spec: DatasetSpec, source: Source, build: DatasetBuild) -> None:
    count = build.progress.kept
    if not count:
        raise InvalidData(f"source {source.name!r} is empty; a dataset needs text")
    for split, share in zip(SPLITS[:2], spec.split, strict=False):
        if share > 0 and not build.progress.splits[split].documents:
            detail = f"{count} documents are too few for the shares {list(spec.split)}"
            raise InvalidData(f"source {source.name!r}: {detail}; split {split} would be empty")


def _file_entries(target: Path, shards: Sequence[Path]) -> dict[str, Any]:
    """Describe the token files of a split; several shards have no common hash."""
    arrays = [np.load(path, mmap_mode="r") for path in shards]
    dtype = {"dtype": arrays[0].dtype.name}
    if len(shards) == 1:
        return {**_file_entry(shards[0], target.name), **dtype}
    files = [
        {**_file_entry(path, shard_path(target, number).name), "tokens": array.size}
        for number, (path, array) in enumerate(zip(shards, arrays, strict=True))
    ]
    size_bytes = sum(file["size_bytes"] for file in files)
    return {"file": target.name, "files": files, "size_bytes": size_bytes, "sha256": None, **dtype}


def _file_entry(path: Path, name: str) -> dict[str, Any]:
    return {"file": name, "size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
