"""The memory of this process for models: each reserves what it always needs, and takes more while some is free.

A model's least share is reserved when it is loaded: its parameters and the cache of one text. So with any number of
busy models each generates at least one text at a time and none waits for another for ever. While a model waits for
more, the others take no more than an equal share of what nobody has reserved.
"""

from __future__ import annotations

import math
import threading
import time

_WAITS_S = 2.0  # a model that waits asks again in each step


class MemoryBudget:
    """Memory that models share. Safe to use from many threads.

    Args:
        cap_bytes: Memory of all models together.
    """

    def __init__(self, cap_bytes: int) -> None:
        self.cap_bytes = cap_bytes
        self._reservations: list[Reservation] = []
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Memory that is taken."""
        with self._lock:
            return self._used_bytes()

    @property
    def is_short(self) -> bool:
        """Whether a model was refused memory in the last seconds."""
        with self._lock:
            return any(reservation.waits for reservation in self._reservations)

    def reserve(self, least_bytes: int) -> Reservation | None:
        """Reserve memory for one more model.

        Args:
            least_bytes: Memory that it always has.

        Returns:
            The reservation; None if the others leave less.
        """
        with self._lock:
            if self._used_bytes() + least_bytes > self.cap_bytes:
                return None
            self._reservations.append(Reservation(self, least_bytes))
            return self._reservations[-1]

    def resize(self, reservation: Reservation, size_bytes: int) -> bool:
        """Change what a model takes.

        Args:
            reservation: Its reservation.
            size_bytes: See `Reservation.resize`.

        Returns:
            Whether it may take that.
        """
        size_bytes = max(size_bytes, reservation.least_bytes)
        with self._lock:
            growth = size_bytes - reservation.size_bytes
            if growth > 0 and not self._may_grow(reservation, growth):
                reservation.refused_s = time.monotonic()
                return False
            if growth > 0:
                reservation.refused_s = -math.inf
            reservation.size_bytes = size_bytes
            return True

    def release(self, reservation: Reservation) -> None:
        """Return all that a model takes; does nothing if that has happened.

        Args:
            reservation: Its reservation.
        """
        with self._lock:
            if reservation in self._reservations:
                self._reservations.remove(reservation)

    def _may_grow(self, reservation: Reservation, growth: int) -> bool:
        if self._used_bytes() + growth > self.cap_bytes:
            return False
        if not any(other.waits for other in self._reservations if other is not reservation):
            return True
        unreserved = self.cap_bytes - sum(each.least_bytes for each in self._reservations)
        taken = reservation.size_bytes - reservation.least_bytes
        return taken + growth <= unreserved // len(self._reservations)

    def _used_bytes(self) -> int:
        return sum(reservation.size_bytes for reservation in self._reservations)


class Reservation:
    """Memory of one model.

    Args:
        budget: Budget that it is a part of.
        least_bytes: Memory that the model always has.

    Attributes:
        least_bytes: Memory that the model always has.
        size_bytes: Memory that it has now.
        refused_s: Time of the last refusal that no growth followed, of `time.monotonic`.
    """

    def __init__(self, budget: MemoryBudget, least_bytes: int) -> None:
        self._budget = budget
        self.least_bytes = self.size_bytes = least_bytes
        self.refused_s = -math.inf

    @property
    def waits(self) -> bool:
        """Whether it was refused memory in the last seconds."""
        return time.monotonic() - self.refused_s < _WAITS_S

    def resize(self, size_bytes: int) -> bool:
        """Take more memory, or return some.

        Args:
            size_bytes: Memory that it takes from now on; it keeps its least share in any case.

        Returns:
            Whether it may; less than before it always may.
        """
        return self._budget.resize(self, size_bytes)

    def close(self) -> None:
        """Return all of it."""
        self._budget.release(self)
