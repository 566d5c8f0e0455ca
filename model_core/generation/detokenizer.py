"""Tokens to text as they come: whole characters only, and never a part of a stop string.

A token is a run of bytes and may end inside a character; a stop string may spread over several tokens. Text that could
still become either is held back until the next token decides.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """The growing text of one sequence.

    Args:
        stop: Strings that end the text.

    Attributes:
        text: Everything so far; cut before the stop string once `stopped`.
        stopped: Whether a stop string appeared.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._ends: list[int] = []  # length of the text after each token
        self._returned = 0  # characters
        self._settled = 0  # tokens
        self.text, self.stopped = "", False

    def add(self, token: bytes) -> str:
        """Append a token.

        Args:
            token: Bytes of the token.

        Returns:
            The text that is now certain; empty if there is none, or after a stop string.
        """
        if self.stopped:
            return ""
        before = len(self.text)
        self.text += self._decode(token)
        self._ends.append(len(self.text))
        self._cut_at_stop(before)
        return self._delta(len(self.text) - (0 if self.stopped else self._held_back()))

    def finish(self) -> str:
        """End the text; half a character becomes U+FFFD.

        Returns:
            The text that was held back.
        """
        if not self.stopped:
            before = len(self.text)
            self.text += self._decode(b"", final=True)
            self._cut_at_stop(before)
        return self._delta(len(self.text))

    @property
    def token_count(self) -> int:
        """Tokens that make up the text; after a cut, those before the stop string."""
        if not self.stopped:
            return len(self._ends)
        return next((count for count, end in enumerate((0, *self._ends)) if end >= len(self.text)), len(self._ends))

    @property
    def settled_count(self) -> int:
        """Tokens whose text was returned whole, and which no stop string can take back any more.

        A token without a character of its own, the first half of one, settles with the text behind it.
        """
        ends = self._ends
        while (
            self._settled < len(ends)
            and ends[self._settled] <= self._returned
            and (ends[self._settled - 1] if self._settled else 0) < self._returned
        ):
            self._settled += 1
        return self._settled

    def _cut_at_stop(self, before: int) -> None:
        first = max(0, before - max(map(len, self._stop), default=0) + 1)  # no stop string ended before
        found = [at for stop in self._stop if (at := self.text.find(stop, first)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held_back(self) -> int:
        """Number of characters at the end that may begin a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _delta(self, end: int) -> str:
        delta, self._returned = self.text[self._returned : end], max(self._returned, end)
        return delta
