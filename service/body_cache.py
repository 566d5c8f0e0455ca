"""Bodies of replies that were built a short while ago, so that the same reply is not built again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable


class BodyCache:
    """Recently built bodies, each with the source that it was built of.

    Args:
        max_bytes: Bytes to keep.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._size = max_bytes, 0
        self._bodies: OrderedDict[object, tuple[object, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Bytes that are kept."""
        return self._size

    def find(self, key: object, is_source: Callable[[object], bool]) -> bytes | None:
        """Find a body.

        Args:
            key: All that the body depends on beside its source.
            is_source: Whether a body of this source is still right.

        Returns:
            The body; None if there is none of the present source.
        """
        with self._lock:
            source, body = self._bodies.get(key, (None, b""))
            if not body or not is_source(source):
                return None
            self._bodies.move_to_end(key)
            return body

    def keep(self, key: object, source: object, body: bytes) -> None:
        """Keep a body, and forget those that were not used for longest until all fit.

        Args:
            key: See `find`.
            source: What the body was built of.
            body: The body.
        """
        with self._lock:
            self._size -= len(self._bodies.pop(key, (None, b""))[1])
            self._bodies[key] = (source, body)
            self._size += len(body)
            while len(self._bodies) > 1 and self._size > self._max_bytes:
                _, (_, forgotten) = self._bodies.popitem(last=False)
                self._size -= len(forgotten)
