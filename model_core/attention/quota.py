"""Keeps the attention on disk within a limit: what could be captured again goes, least recently used first.

Records of texts, records of examples and patterns of heads (`heads.patterns`) can go. Results of jobs and readings of
probes count, and stay.

Sizes are counted by walking the directory, which takes seconds where there are hundreds of thousands of files. So a
process counts once, adds what it captures itself, and counts again only when the limit seems reached, or after many
captures, because other processes capture too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from model_core.attention.record import MANIFEST, further_directories, is_example, text_directory
from model_core.attention.texts import last_used, list_ids, remove_from_text, size_of, text_lock, tree_bytes
from model_core.errors import AttentionTooLarge, FieldProblem, ModelCoreError
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run

log = logging.getLogger(__name__)

MAX_RECORD_WEIGHTS = 2**30  # of all layers; a byte each on disk
_NORM_BYTES = 8  # two float32 a head and token
_HEAD_BYTES, _TOKEN_BYTES = 700, 60  # in statistics.json and manifest.json
_CAPTURES_PER_COUNT = 256
PATTERNS, PATTERN_FILES = "probes", "*.npz"  # in the attention of a run: what its heads attend to in a probe
_SPARE_SHARE = 1 / 64  # of the limit that is freed beyond what is needed, so that the next captures need not count


def record_bytes(heads: Sequence[int], tokens: int) -> int:
    """Estimate the size of a record without pictures; its arrays are counted exactly.

    Args:
        heads: Head count of every layer.
        tokens: Number of tokens, T.

    Returns:
        Bytes on disk.
    """
    return sum(heads) * (tokens * (tokens + _NORM_BYTES) + _HEAD_BYTES) + tokens * _TOKEN_BYTES


def fitting_tokens(heads: Sequence[int], room_bytes: int) -> int:
    """Compute how many tokens fit.

    Args:
        heads: Head count of every layer.
        room_bytes: Bytes that a record may have.

    Returns:
        The most tokens; 0 if not even one fits.
    """
    sizes = range(1, math.isqrt(MAX_RECORD_WEIGHTS // sum(heads)) + 1)
    return bisect_right(sizes, room_bytes, key=lambda tokens: record_bytes(heads, tokens))


def check_size(heads: Sequence[int], tokens: int, *, max_tokens: int | None = None) -> None:
    """Check the number of weights of a capture.

    Args:
        heads: Head count of every layer.
        tokens: Number of tokens, T.
        max_tokens: What the request gave, for the error.

    Raises:
        AttentionTooLarge: There are more than MAX_RECORD_WEIGHTS. The error names the largest `max_tokens` that fits.
    """
    weights = sum(heads) * tokens**2
    if weights > MAX_RECORD_WEIGHTS:
        raise too_large(
            f"{tokens} tokens in {len(heads)} layers of up to {max(heads)} heads make {weights:,} attention weights, "
            f"and {MAX_RECORD_WEIGHTS:,} is the most",
            max_tokens or tokens,
            math.isqrt(MAX_RECORD_WEIGHTS // sum(heads)),
        )


def too_large(detail: str, value: int, most: int) -> AttentionTooLarge:
    """Build the error about a text that is too long for what there is room for.

    Args:
        detail: What is too large, and the bound.
        value: The number of tokens that was wanted.
        most: The largest that fits; 0 if none does.

    Returns:
        The error, with a pointer to max_tokens.
    """
    fits = f"max_tokens={most} fits" if most else "not even one token fits"
    problem = FieldProblem("/max_tokens", f"{detail}; {fits}", value, (most,) if most else ())
    return AttentionTooLarge(problem.detail, [problem])


class AttentionQuota:
    """Makes room for new records. Safe to use from many threads.

    Args:
        layout: Paths of the data root.
        limit_bytes: Most bytes below `layout.attention`.
    """

    def __init__(self, layout: Layout, limit_bytes: int) -> None:
        self._layout, self._limit_bytes = layout, limit_bytes
        self._used_bytes: int | None = None  # None: not counted yet
        self._captures = 0
        self._lock = threading.Lock()

    def make_room(self, run: str, id: str, heads: Sequence[int], tokens: int, *, max_tokens: int | None = None) -> None:  # noqa: A002 - the name that clients see
        """Remove records until a new one fits.

        Texts and patterns of heads go first, then examples whose checkpoint still exists; each time the least recently
        used. A record whose checkpoint was replaced or deleted stays, because nothing could capture it again; patterns
        of such a checkpoint go, because nothing asks for them again.

        Args:
            run: Name of the run of the new record.
            id: Number of a test example, or the id of a text; its own records stay.
            heads: Head count of every layer.
            tokens: Number of tokens, T.
            max_tokens: What the request gave, for the error.

        Raises:
            AttentionTooLarge: It does not fit, whatever is removed; nothing was. The error names the largest
                `max_tokens` that fits.
        """
        room = self.reserve(run, id, record_bytes(heads, tokens))
        if room is not None:
            raise self._refusal(heads, tokens, room, max_tokens)

    def reserve(self, run: str, id: str | None, need: int) -> int | None:  # noqa: A002 - the name that clients see
        """Remove records until some bytes fit, and count them as used.

        Args:
            run: Name of the run to which they belong.
            id: Number of a test example, or the id of a text, whose own records stay; None if they are of no text.
            need: The bytes.

        Returns:
            None if they fit now; else the bytes that would fit, and nothing was removed.
        """
        with self._lock:
            self._captures += 1
            if self._used_bytes is None or self._captures % _CAPTURES_PER_COUNT == 0:
                self._used_bytes = tree_bytes(self._layout.attention)
            if self._shortage(need) > 0:
                self._used_bytes = tree_bytes(self._layout.attention)
            shortage = self._shortage(need)
            if shortage > 0:
                kept = None if id is None else text_directory(self._layout, run, id)
                victims = list(self._victims(kept, shortage))
                freed = sum(victim.size_bytes for victim in victims)
                if freed < shortage:
                    return max(0, need - shortage + freed)
                self._used_bytes -= sum(victim.size_bytes for victim in victims if victim.remove())
            self._used_bytes += need
            return None

    def _shortage(self, need: int) -> int:
        """Bytes that are missing for a new record, in the limit or on the disk."""
        home = self._layout.attention
        home.mkdir(parents=True, exist_ok=True)
        assert self._used_bytes is not None
        return max(self._used_bytes + need - self._limit_bytes, need - shutil.disk_usage(home).free)

    def _victims(self, kept: Path | None, shortage: int) -> Iterator[_Victim]:
        """What to remove for a shortage; all that may go if that is not enough."""
        hashes: dict[str, frozenset[str]] = {}
        wanted = shortage + int(self._limit_bytes * _SPARE_SHARE)
        for victim in sorted(self._candidates(kept), key=lambda one: (one.is_example, one.used_s)):
            if victim.run not in hashes:
                hashes[victim.run] = self._checkpoint_hashes(victim.run)
            if not victim.may_go(hashes[victim.run]):
                continue
            yield victim
            wanted -= victim.size_bytes
            if wanted <= 0:
                return

    def _candidates(self, kept: Path | None) -> Iterator[_Victim]:
        for home in self._layout.attention.iterdir():
            if home.name.startswith(".") or not home.is_dir():
                continue
            for path in (home / PATTERNS).glob(PATTERN_FILES):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = path.stat()
                    yield _Patterns(path, status.st_size, status.st_mtime)
            for name in list_ids(self._layout, home.name):
                text = home / name
                if text == kept:
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    for path in (text, *further_directories(text)):
                        if (path / MANIFEST).is_file():
                            yield _Record(path, size_of(path), last_used(path), text)

    def _checkpoint_hashes(self, run: str) -> frozenset[str]:
        try:
            return frozenset(info.sha256 for info in Run.open(self._layout.run(run)).checkpoints())
        except ModelCoreError:  # the run is gone: nothing could capture its attention again
            return frozenset()

    def _refusal(self, heads: Sequence[int], tokens: int, room: int, max_tokens: int | None) -> AttentionTooLarge:
        return too_large(
            f"attention of {tokens} tokens takes {record_bytes(heads, tokens):,} bytes, and there is room for "
            f"{max(0, room):,} on the disk and within HEADCOUNT_ATTENTION_GB",
            max_tokens or tokens,
            fitting_tokens(heads, room),
        )


@dataclass(frozen=True)
class _Victim(ABC):
    """What may be removed."""

    path: Path
    size_bytes: int
    used_s: float

    @property
    @abstractmethod
    def run(self) -> str:
        """Name of the run."""

    @property
    def is_example(self) -> bool:
        """Whether it goes last."""
        return False

    @abstractmethod
    def may_go(self, hashes: frozenset[str]) -> bool:
        """Whether it can be removed, beside the checkpoints of its run."""

    @abstractmethod
    def remove(self) -> bool:
        """Remove it; return whether it is gone."""


class _Patterns(_Victim):
    """A file of patterns: of a present checkpoint it can be captured again, of another one nothing asks for it."""

    @property
    def run(self) -> str:
        return self.path.parent.parent.name

    def may_go(self, hashes: frozenset[str]) -> bool:
        del hashes
        return True

    def remove(self) -> bool:
        self.path.unlink(missing_ok=True)
        log.info("patterns removed for room path=%s bytes=%d", self.path.name, self.size_bytes)
        return True


@dataclass(frozen=True)
class _Record(_Victim):
    """A record of a text."""

    text: Path

    @property
    def run(self) -> str:
        return self.text.parent.name

    @property
    def is_example(self) -> bool:
        return is_example(self.text.name)

    def may_go(self, hashes: frozenset[str]) -> bool:
        """Whether its checkpoint could capture it again."""
        try:
            return str(read_json(self.path / MANIFEST)["sha256"]) in hashes
        except FileNotFoundError:
            return False

    def remove(self) -> bool:
        """Remove it, unless it is being captured anew."""
        try:
            with text_lock(self.text, timeout_s=0):
                remove_from_text(self.path, self.text)
        except Timeout:
            return False
        except FileNotFoundError:
            return True
        log.info("attention removed for room path=%s bytes=%d", self.path.name, self.size_bytes)
        return True
