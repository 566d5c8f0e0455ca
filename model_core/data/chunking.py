"""From documents to pieces of work: split assignment, deduplication, chunks and their encoding.

Every block of a hundred documents is dealt to the splits by the shares, in an order given by the seed and the number
of the block, so a split is exact and does not depend on later documents. A chunk holds whole documents. Its encoding
depends only on them and their positions, so chunks may be cut anywhere and encoded in parallel.
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

BLOCK = 100  # documents that are dealt together
T = TypeVar("T")


def assigned(documents: Iterable[T], shares: Sequence[float], seed: int) -> Iterator[tuple[str, T]]:
    """Give every document its split.

    Args:
        documents: In order; at most a block of them is held.
        shares: Of training, validation and test documents; they sum to 1.
        seed: Decides which documents of a block go where.

    Yields:
        Split and document, in the order of the documents.
    """
    return chain.from_iterable(dealt_blocks(documents, shares, seed))


def dealt_blocks(
    documents: Iterable[T], shares: Sequence[float], seed: int, *, first: int = 0
) -> Iterator[list[tuple[str, T]]]:
    """Give every document its split, a block at a time.

    Args:
        documents: In order, from the beginning of a block.
        shares: See `assigned`.
        seed: See `assigned`.
        first: Number of the first block.

    Yields:
        Split and document of a block's documents; the last block may be shorter.
    """
    remaining, number = iter(documents), first
    while block := list(islice(remaining, BLOCK)):
        yield list(zip(_dealt(len(block), shares, seed, number), block, strict=True))
        number += 1


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Divide a count into whole numbers that follow the shares, by largest remainder.

    Args:
        count: Number to divide.
        shares: Shares that sum to 1.

    Returns:
        One number per share; they sum to `count`.
    """
    exact = [round(count * share, 9) for share in shares]  # 100 * 0.09 is not 9 in binary
    whole = [int(number) for number in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole


def _dealt(count: int, shares: Sequence[float], seed: int, block: int) -> list[str]:
    splits = [split for split, n in zip(SPLITS, apportion(count, shares), strict=True) for _ in range(n)]
    # by hash and not by a library's generator: those may change from version to version
    numbers = np.frombuffer(hashlib.shake_256(f"{seed}/{block}".encode()).digest(8 * count), "<u8")  # (count,)
    order = np.argsort(numbers, kind="stable").tolist()
    dealt = [""] * count
    for place, split in zip(order, splits, strict=True):
        dealt[place] = split
    return dealt


HASH_BYTES = 16
_DTYPE = f"S{HASH_BYTES}"  # of equal lengths, so it does not matter that numpy drops zeros at the end
_UNSORTED = 4096  # hashes that wait in a set for a run of their own


class Deduplicator:
    """Detects repeated texts by their hashes.

    Args:
        hashes: Concatenated hashes of the texts that an earlier process added.
    """

    def __init__(self, hashes: bytes = b"") -> None:
        self._runs: list[NDArray[Any]] = [np.sort(np.frombuffer(hashes, _DTYPE))] if hashes else []
        self._recent: set[bytes] = set()

    def add(self, text: str) -> bytes | None:
        """Add a text.

        Args:
            text: Text of a document.

        Returns:
            Hash of the text if it is new; None if it was added before.
        """
        found = hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()
        if found in self._recent or self._is_in_a_run(found):
            return None
        self._recent.add(found)
        if len(self._recent) == _UNSORTED:
            self._make_run()
        return found

    def _is_in_a_run(self, wanted: bytes) -> bool:
        key = np.array(wanted, _DTYPE)
        places = ((run, int(run.searchsorted(key))) for run in self._runs)
        return any(place < len(run) and run[place] == key for run, place in places)

    def _make_run(self) -> None:
        run = np.sort(np.array(list(self._recent), _DTYPE))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # which merges
        self._runs.append(run)


CHUNK_CHARACTERS = 1 << 20  # smaller ones repeat less, and wait for the interpreter's lock too often


class NumberedDocument(NamedTuple):  # of which there are millions
    """A document on its way.

    Attributes:
        number: How many documents of the source were read with it.
        hash: Of its text, where duplicates are dropped.
    """

    text: str
    category: str | None
    number: int
    hash: bytes = b""


@dataclass(frozen=True)
class Chunk:
    """Documents that are worked on together.

    Attributes:
        parts: Split and document.
        first_example: How many test documents were before.
        ends_block: Whether the next document begins a block of the split: what is done up to here can be kept.
    """

    parts: list[tuple[str, NumberedDocument]]
    first_example: int
    ends_block: bool


@dataclass
class Counts:
    """Of some documents."""

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
    """A chunk as it goes to disk.

    Attributes:
        chunk: Which.
        tokens: Bytes of the ids of every split, an end of text behind each document.
        splits: What they hold.
        categories: Likewise, by category; empty when the source has none.
        examples: Test documents as JSON objects.
    """

    chunk: Chunk
    tokens: dict[str, bytes]
    splits: dict[str, Counts]
    categories: dict[str, Counts]
    examples: list[bytes]


class DocumentReader:
    """Reads a source once, numbers the documents and drops duplicates if the spec asks for it.

    Attributes:
        read: How many documents were read so far, with those of earlier processes.

    Args:
        source: The corpus.
        spec: What to do with it.
        skip: How many documents were read before.
        hashes: Of those that were kept.
    """

    def __init__(self, source: Source, spec: DatasetSpec, *, skip: int = 0, hashes: bytes = b"") -> None:
        self._documents, self.read = source.documents(skip), skip
        self._seen = Deduplicator(hashes) if spec.dedupe else None

    def __iter__(self) -> Iterator[NumberedDocument]:
        for document in self._documents:
            self.read += 1
            text = _encodable(document.text)
            found = self._seen.add(text) if self._seen else b""
            if found is not None:
                category = None if document.category is None else _encodable(document.category)
                yield NumberedDocument(text, category, self.read, found)


def chunks(
    parts: Iterable[NumberedDocument],
    spec: DatasetSpec,
    *,
    kept: int = 0,
    examples: int = 0,
    characters: int = CHUNK_CHARACTERS,
) -> Iterator[Chunk]:
    """Cut documents into chunks.

    Args:
        parts: From the beginning of a block of the split.
        spec: Its shares and seed.
        kept: Documents before these.
        examples: Test documents before these.
        characters: About how many a chunk has.

    Yields:
        Chunks in the order of the documents.
    """
    gathered: list[tuple[str, NumberedDocument]] = []
    size, is_cut = 0, False
    for block in dealt_blocks(parts, spec.split, spec.seed, first=kept // BLOCK):
        for split, part in block:
            if size >= characters:
                yield Chunk(gathered, examples, ends_block=False)
                examples += sum(split == "test" for split, _ in gathered)
                gathered, size, is_cut = [], 0, True
            gathered.append((split, part))
            size += len(part.text)
        if is_cut or size >= characters // 2:
            yield Chunk(gathered, examples, ends_block=True)
            examples += sum(split == "test" for split, _ in gathered)
            gathered, size, is_cut = [], 0, False
    if gathered:
        yield Chunk(gathered, examples, ends_block=True)


def encode_chunk(chunk: Chunk, encoder: BulkEncoder, dtype: str) -> Encoded:
    """Tokenize a chunk. Several threads may call it at once.

    Args:
        chunk: The documents.
        encoder: Of the dataset's tokenizer.
        dtype: Of the ids on disk.

    Returns:
        The encoded chunk, ready to be written.
    """
    texts = [part.text for _, part in chunk.parts]
    ids, lengths = encoder.encode(texts)  # (T,), (N,)
    sizes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts])  # (N,)
    of_document = np.array([SPLITS.index(split) for split, _ in chunk.parts], np.int8)  # (N,)
    of_token = np.repeat(of_document, lengths)  # (T,)
    on_disk = ids.astype(dtype)  # (T,)
    tokens = {split: on_disk[of_token == n].tobytes() for n, split in enumerate(SPLITS)}
    splits = {split: _count(of_document == n, lengths, sizes) for n, split in enumerate(SPLITS)}
    names = dict.fromkeys(part.category for _, part in chunk.parts)
    numbers = {name: n for n, name in enumerate(names)}
    of_category = np.array([numbers[part.category] for _, part in chunk.parts])  # (N,)
    categories = {name: _count(of_category == n, lengths, sizes) for name, n in numbers.items() if name is not None}
    return Encoded(chunk, tokens, splits, categories, _examples(chunk, ids, lengths))


def _count(which: NDArray[np.bool_], lengths: NDArray[np.int64], sizes: NDArray[np.int64]) -> Counts:
    """Count some of N documents, of which lengths in tokens and sizes in bytes are known."""
    return Counts(int(which.sum()), int(lengths[which].sum()), int(sizes[which].sum()))


def _examples(chunk: Chunk, ids: Ids, lengths: NDArray[np.int64]) -> list[bytes]:
    examples, ends = list[bytes](), np.cumsum(lengths)
    for (split, part), length, end in zip(chunk.parts, lengths, ends, strict=True):
        if split == "test":
            number = chunk.first_example + len(examples)
            record = {"id": number, "text": part.text, "tokens": ids[end - length : end - 1].tolist()}
            examples.append(json.dumps(record, ensure_ascii=False).encode())
    return examples


def _encodable(text: str) -> str:
    """The text; halves of surrogate pairs, which JSON can bring and UTF-8 cannot hold, become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
