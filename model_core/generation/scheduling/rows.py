"""Rows of the KV cache in use, and the memory that they may take.

The rows that generate are the first ones; those that are read follow. When one leaves, others move into the gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from model_core.generation.forward.model_runner import CHUNK, ModelRunner
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import OpenRequest, Request
from model_core.generation.sequence import Continuation, Occupant, ScoredSequence

TakeMemory = Callable[[int], bool]


class Rows:
    """Who is in which row.

    Args:
        runner: The model with its cache.

    Attributes:
        generating: Number of rows that generate.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._occupants: list[Occupant] = []
        self.generating = 0

    def __len__(self) -> int:
        return len(self._occupants)

    def __iter__(self) -> Iterator[Occupant]:
        return iter(self._occupants)

    @property
    def is_full(self) -> bool:
        """Whether no row is free."""
        return len(self._occupants) == self._runner.rows

    @property
    def longest(self) -> int:
        """Most positions that one of them will have."""
        return max((occupant.reserved for occupant in self._occupants), default=0)

    @property
    def texts(self) -> list[Continuation]:
        """Those that generate, in order."""
        return [it for it in self._occupants[: self.generating] if isinstance(it, Continuation)]

    @property
    def unread_texts(self) -> list[Continuation]:
        """Those that do not generate yet, in order."""
        return [it for it in self._occupants[self.generating :] if isinstance(it, Continuation)]

    @property
    def scores(self) -> list[ScoredSequence]:
        """Sequences that are scored, in order."""
        return [it for it in self._occupants[self.generating :] if isinstance(it, ScoredSequence)]

    @property
    def clients(self) -> Counter[str]:
        """Rows of each client."""
        return Counter(occupant.request.client for occupant in self._occupants)

    def index(self, occupant: Occupant) -> int:
        """Find the row of an occupant.

        Args:
            occupant: One that has a row.

        Returns:
            Its row.
        """
        return self._occupants.index(occupant)

    def indices(self) -> Mapping[Occupant, int]:
        """Find the rows of all.

        Returns:
            Row of each occupant.
        """
        return {occupant: row for row, occupant in enumerate(self._occupants)}

    def with_prompt(self, request: Request) -> int | None:
        """Find a row that holds the whole prompt of a request.

        Args:
            request: The request.

        Returns:
            The row; None if there is none yet.
        """
        occupants = enumerate(self._occupants)
        return next((row for row, it in occupants if it.request is request and it.read == len(it.ids)), None)

    def append(self, occupant: Occupant) -> None:
        """Give the next row to somebody who will be read.

        Args:
            occupant: Who gets it.
        """
        self._occupants.append(occupant)

    def clear(self, occupant: Occupant) -> None:
        """Write zeros over a row with values that are not finite, before any row moves.

        Args:
            occupant: Who has the row.
        """
        self._runner.clear_row(self.index(occupant))

    def promote(self, choice: Continuation) -> None:
        """Move a row to those that generate.

        Args:
            choice: Who begins to generate.
        """
        row, target, occupants = self.index(choice), self.generating, self._occupants
        if row != target:
            self._runner.swap_rows(row, target)
            occupants[row], occupants[target] = occupants[target], occupants[row]
        self.generating += 1

    def remove(self, occupant: Occupant) -> None:
        """Free a row; the last row of its kind moves into the gap, and the last row of all into that row's.

        Args:
            occupant: Who leaves.
        """
        row = self.index(occupant)
        if row < self.generating:
            self.generating -= 1
            self._move(self.generating, row)
            row = self.generating
        self._move(len(self._occupants) - 1, row)
        self._occupants.pop()
        self._runner.free_row(len(self._occupants))

    def remove_requests(self, requests: Collection[OpenRequest]) -> None:
        """Free all rows of some requests.

        Args:
            requests: The requests.
        """
        for occupant in [it for it in self._occupants if it.request in requests]:
            self.remove(occupant)

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._runner.copy_row(source, target, self._occupants[source].cached)
            self._occupants[target] = self._occupants[source]


class CacheMemory:
    """Memory that the cache of the rows and the prefix cache take together.

    Args:
        rows: The rows.
        runner: The model with its cache.
        prefixes: Beginnings of prompts; they make room for rows.
        cache_tokens: Most positions: rows in use times the longest of them. None: all that the runner has.
        take: Called with the bytes that both caches may take from now on; returns whether they may. It must allow a
            cache of one row with all positions, and less than before. None allows everything.
    """

    def __init__(
        self,
        rows: Rows,
        runner: ModelRunner,
        prefixes: PrefixCache,
        cache_tokens: int | None = None,
        take: TakeMemory | None = None,
    ) -> None:
        self._rows, self._runner, self._prefixes = rows, runner, prefixes
        self._cache_tokens = cache_tokens or runner.rows * _rounded(runner.length)
        self._take = take or (lambda _: True)
        self._cache_bytes = 0  # that the rows were given
        self._counted_rows = -1  # when some of it was last returned
        self.fit()

    def admits(self, occupant: Occupant) -> bool:
        """Take the memory of one more row.

        Args:
            occupant: Who would get it.

        Returns:
            Whether there is memory for it, which one row always has.
        """
        count, longest = len(self._rows) + 1, max(self._rows.longest, occupant.reserved)
        if count > 1 and count * _rounded(longest) > self._cache_tokens:
            return False
        return self._may_grow(self._runner.need_bytes(count, longest)) or count == 1

    def admits_block(self) -> bool:
        """Take the memory of one more block of the prefix cache.

        Returns:
            Whether there is some.
        """
        return self._take(self._cache_bytes + self._prefixes.size_bytes + self._runner.block_bytes)

    def allocate(self) -> None:
        """Allocate the rows in use."""
        self._runner.use_rows(len(self._rows), self._rows.longest)

    def fit(self) -> None:
        """Let the cache shrink to the rows in use, and return what they do not need."""
        if len(self._rows) != self._counted_rows:
            self.allocate()
            self._may_grow(self._runner.need_bytes(len(self._rows), self._rows.longest))
            self._counted_rows = len(self._rows)

    def _may_grow(self, cache_bytes: int) -> bool:
        """Take memory for the cache of the rows; what the prefix cache keeps makes room for it."""
        need = max(cache_bytes, self._runner.cache_bytes)
        while not self._take(need + self._prefixes.size_bytes):
            if not self._prefixes.drop_oldest():
                return False
        self._cache_bytes = need
        return True


def _rounded(length: int) -> int:
    return -(-length // CHUNK) * CHUNK
