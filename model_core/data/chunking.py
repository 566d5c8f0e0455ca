"""Numbers, deduplicates and splits documents, groups them into chunks and encodes the chunks.

Every block of 100 documents is divided between the splits by their shares, in an order that depends only on the seed
and the number of the block, so a split is exact and independent of later documents. The encoding of a chunk depends
only on its documents and their positions, so chunks can have any size and be encoded in parallel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_core.data.dataset_spec import DatasetSpec
from model_core.data.encoder import BulkEncoder, Ids
from model_core.data.sources.base import Source
from model_core.storage.dataset import SPLITS
from model_core.tokenizer import END_OF_TEXT

BLOCK = 100  # documents that are divided between the splits together
HASH_BYTES = 16
CHUNK_CHARACTERS = 1 << 20  # in smaller chunks fewer words repeat, and threads wait more often for the GIL
REPLACEMENT = "\ufffd"  # for zero bytes and lone surrogates
_HASH_DTYPE = f"S{HASH_BYTES}"  # numpy strips trailing zeros, which is harmless because all lengths are equal
_MAX_UNSORTED = 4096  # hashes in the set before they become a sorted run

T = TypeVar("T")


def assign_splits(documents: Iterable[T], shares: Sequence[float], seed: int) -> Iterator[tuple[str, T]]:
    """Assign every document to a split.

    Args:
        documents: Documents in order; at most one block is held in memory.
        shares: Shares of training, validation and test documents, which sum to 1.
        seed: Seed of the assignment within each block.

    Yields:
        Split and document, in the order of the documents.
    """
    return chain.from_iterable(split_blocks(documents, shares, seed))


def split_blocks(
    documents: Iterable[T], shares: Sequence[float], seed: int, *, first: int = 0
) -> Iterator[list[tuple[str, T]]]:
    """Assign every document to a split, block by block.

    Args:
        documents: Documents in order, from the start of a block.
        shares: See `assign_splits`.
        seed: See `assign_splits`.
        first: Number of the first block.

    Yields:
        Split and document for each document of a block; the last block may be shorter.
    """
    remaining, number = iter(documents), first
    while block := list(islice(remaining, BLOCK)):
        yield list(zip(_assignment(len(block), shares, seed, number), block, strict=True))
        number += 1


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Divide a count in proportion to the shares, by the largest remainder method.

    Args:
        count: Number to divide.
        shares: Shares that sum to 1.

    Returns:
        One number per share; they sum to `count`.
    """
    exact = [round(count * share, 9) for share in shares]  # 100 * 0.09 is not exactly 9 in binary
    whole = [int(number) for number in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole


class Deduplicator:
    """Detects repeated texts by their hashes.

    The hashes are in sorted runs, which need less memory than a set; runs of similar length are merged.

    Args:
        hashes: Concatenated hashes of the texts that an earlier process added.
    """

    def __init__(self, hashes: bytes = b"") -> None:
        self._runs: list[NDArray[Any]] = [np.sort(np.frombuffer(hashes, _HASH_DTYPE))] if hashes else []
        self._recent: set[bytes] = set()

    def add(self, text: str) -> bytes | None:
        """Add a text.

        Args:
            text: Text of a document.

        Returns:
            Hash of the text if it is new; None if it was added before.
        """
        digest = hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()
        if digest in self._recent or self._is_in_run(digest):
            return None
        self._recent.add(digest)
        if len(self._recent) == _MAX_UNSORTED:
            self._add_run()
        return digest

    def _is_in_run(self, digest: bytes) -> bool:
        key = np.array(digest, _HASH_DTYPE)
        candidates = ((run, int(run.searchsorted(key))) for run in self._runs)
        return any(index < len(run) and run[index] == key for run, index in candidates)

    def _add_run(self) -> None:
        run = np.sort(np.array(list(self._recent), _HASH_DTYPE))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # merges the sorted runs
        self._runs.append(run)


class NumberedDocument(NamedTuple):  # a tuple, because a corpus has millions of documents
    """A document with its position in the source.

    Attributes:
        text: Text of the document; encodable as UTF-8.
        category: Category that the corpus gives it, if any.
        number: Number of the document in the source, from 1.
        hash: Hash of the text; empty if duplicates are kept.
        zero_bytes: Zero bytes that were replaced in the text.
    """

    text: str
    category: str | None
    number: int
    hash: bytes = b""
    zero_bytes: int = 0


@dataclass(frozen=True)
class Chunk:
    """Documents that are encoded together.

    Attributes:
        documents: Split and document of each.
        first_example: Number of test documents before this chunk.
        ends_block: Whether the chunk ends at the end of a block, where an interrupted build can resume.
    """

    documents: list[tuple[str, NumberedDocument]]
    first_example: int
    ends_block: bool


@dataclass
class Counts:
    """Numbers of documents, tokens and bytes of text."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of other documents.

        Args:
            other: Counts to add.
        """
        self.documents += other.documents
        self.tokens += other.tokens
        self.text_bytes += other.text_bytes


@dataclass(frozen=True)
class Encoded:
    """An encoded chunk, ready to be written.

    Attributes:
        chunk: Chunk that was encoded.
        tokens: Bytes of the token ids by split, with an end-of-text token after each document.
        splits: Counts by split.
        categories: Counts by category; empty if the source has no categories.
        examples: Test documents as JSON objects.
        characters: Bytes of the documents' lengths in characters, as ``<u4``.
        special_texts: End-of-text markers inside the documents.
    """

    chunk: Chunk
    tokens: dict[str, bytes]
    splits: dict[str, Counts]
    categories: dict[str, Counts]
    examples: list[bytes]
    characters: bytes
    special_texts: int


class DocumentReader:
    """Reads a source once, numbers the documents and drops duplicates if the spec requests it.

    Attributes:
        read: Documents read so far, including those of earlier processes.

    Args:
        source: Source to read.
        spec: Spec of the dataset; only `dedupe` matters.
        skip: Documents that earlier processes read.
        hashes: Hashes of the documents that earlier processes kept.
    """

    def __init__(self, source: Source, spec: DatasetSpec, *, skip: int = 0, hashes: bytes = b"") -> None:
        self._documents, self.read = source.documents(skip), skip
        self._seen = Deduplicator(hashes) if spec.dedupe else None

    def __iter__(self) -> Iterator[NumberedDocument]:
        for document in self._documents:
            self.read += 1
            text = _encodable(document.text)
            zero_bytes = text.count("\0")
            text = text.replace("\0", REPLACEMENT) if zero_bytes else text
            digest = self._seen.add(text) if self._seen else b""
            if digest is not None:
                category = None if document.category is None else _encodable(document.category)
                yield NumberedDocument(text, category, self.read, digest, zero_bytes)


def make_chunks(
    documents: Iterable[NumberedDocument],
    spec: DatasetSpec,
    *,
    kept: int = 0,
    examples: int = 0,
    characters: int = CHUNK_CHARACTERS,
) -> Iterator[Chunk]:
    """Assign documents to splits and group them into chunks.

    Args:
        documents: Documents in order, from the start of a block.
        spec: Shares and seed of the split.
        kept: Number of documents before these.
        examples: Number of test documents before these.
        characters: Approximate size of a chunk.

    Yields:
        Chunks in the order of the documents.
    """
    pending: list[tuple[str, NumberedDocument]] = []
    size, is_inside_block = 0, False
    for block in split_blocks(documents, spec.split, spec.seed, first=kept // BLOCK):
        for split, document in block:
            if size >= characters:
                yield Chunk(pending, examples, ends_block=False)
                examples += sum(split == "test" for split, _ in pending)
                pending, size, is_inside_block = [], 0, True
            pending.append((split, document))
            size += len(document.text)
        if is_inside_block or size >= characters // 2:
            yield Chunk(pending, examples, ends_block=True)
            examples += sum(split == "test" for split, _ in pending)
            pending, size, is_inside_block = [], 0, False
    if pending:
        yield Chunk(pending, examples, ends_block=True)


def encode_chunk(chunk: Chunk, encoder: BulkEncoder, dtype: str) -> Encoded:
    """Tokenize a chunk. Thread-safe.

    Args:
        chunk: Chunk to encode.
        encoder: Encoder of the dataset's tokenizer.
        dtype: Type of the token ids on disk.

    Returns:
        The encoded chunk.
    """
    texts = [document.text for _, document in chunk.documents]
    ids, lengths = encoder.encode(texts)  # (T,), (N,)
    sizes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts])  # (N,)
    document_split = np.array([SPLITS.index(split) for split, _ in chunk.documents], np.int8)  # (N,)
    token_split = np.repeat(document_split, lengths)  # (T,)
    stored_ids = ids.astype(dtype)  # (T,)
    tokens = {split: stored_ids[token_split == n].tobytes() for n, split in enumerate(SPLITS)}
    splits = {split: _count(document_split == n, lengths, sizes) for n, split in enumerate(SPLITS)}
    names = dict.fromkeys(document.category for _, document in chunk.documents)
    numbers = {name: n for n, name in enumerate(names)}
    category = np.array([numbers[document.category] for _, document in chunk.documents])  # (N,)
    categories = {name: _count(category == n, lengths, sizes) for name, n in numbers.items() if name is not None}
    characters = np.array([len(text) for text in texts], "<u4").tobytes()
    special_texts = sum(text.count(END_OF_TEXT) for text in texts if END_OF_TEXT in text)
    return Encoded(chunk, tokens, splits, categories, _examples(chunk, ids, lengths), characters, special_texts)


def _assignment(count: int, shares: Sequence[float], seed: int, block: int) -> list[str]:
    """Return the split of each of `count` documents of a block."""
    splits = [split for split, n in zip(SPLITS, apportion(count, shares), strict=True) for _ in range(n)]
    # a hash instead of a random generator, whose numbers may change with the version of the library
    numbers = np.frombuffer(hashlib.shake_256(f"{seed}/{block}".encode()).digest(8 * count), "<u8")  # (count,)
    order = np.argsort(numbers, kind="stable").tolist()
    assignment = [""] * count
    for index, split in zip(order, splits, strict=True):
        assignment[index] = split
    return assignment


def _count(mask: NDArray[np.bool_], lengths: NDArray[np.int64], sizes: NDArray[np.int64]) -> Counts:
    """Count the documents of a mask, (N,), by their lengths in tokens and sizes in bytes."""
    return Counts(int(mask.sum()), int(lengths[mask].sum()), int(sizes[mask].sum()))


def _examples(chunk: Chunk, ids: Ids, lengths: NDArray[np.int64]) -> list[bytes]:
    examples, ends = list[bytes](), np.cumsum(lengths)
    for (split, document), length, end in zip(chunk.documents, lengths, ends, strict=True):
        if split == "test":
            number = chunk.first_example + len(examples)
            record = {"id": number, "text": document.text, "tokens": ids[end - length : end - 1].tolist()}
            examples.append(json.dumps(record, ensure_ascii=False).encode())
    return examples


def _encodable(text: str) -> str:
    """Replace lone surrogates, which a category can contain and UTF-8 cannot, by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
