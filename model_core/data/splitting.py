"""Which document goes to which split.

Every block of a hundred documents is dealt by the shares, in an order that the seed and the block's number give,
so a split is exact, needs no second look at the corpus, and does not depend on how many documents follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from model_core.records.dataset import SPLITS

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
    """Whole numbers that sum to `count` and follow the shares, by largest remainder."""
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
