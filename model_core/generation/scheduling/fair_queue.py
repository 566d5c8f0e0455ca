"""A queue of many clients who take turns; each client's own items come in order of arrival."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items by client; the client whose last turn is longest ago comes first."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()  # in order of turns; no line is empty
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, client: str, item: T) -> None:
        """Append an item.

        Args:
            client: Whose item it is.
            item: The item.
        """
        self._lines.setdefault(client, deque()).append(item)
        self._size += 1

    def peek(self, may_go: Callable[[str], bool]) -> T | None:
        """Return the next item.

        Args:
            may_go: Whether a client may have a turn now.

        Returns:
            The first item of the first client who may have a turn; None if there is none.
        """
        client = next((client for client in self._lines if may_go(client)), None)
        return None if client is None else self._lines[client][0]

    def pop(self, client: str) -> T:
        """Remove a client's first item; the client's next turn comes after those of all others who wait.

        Args:
            client: A client who waits.

        Returns:
            The item.
        """
        line = self._lines[client]
        item = line.popleft()
        self._size -= 1
        self._lines.move_to_end(client)
        if not line:
            del self._lines[client]
        return item

    def others_wait(self, client: str) -> bool:
        """Whether another client waits.

        Args:
            client: The client who is not counted.

        Returns:
            Whether the queue has items of others.
        """
        return len(self._lines) > (client in self._lines)

    def discard(self, unwanted: Callable[[T], bool]) -> None:
        """Remove items.

        Args:
            unwanted: Whether an item is removed.
        """
        for client, line in list(self._lines.items()):
            kept = deque(item for item in line if not unwanted(item))
            if kept:
                self._lines[client] = kept
            else:
                del self._lines[client]
        self._size = sum(map(len, self._lines.values()))
