"""Tokens to text as they come: whole characters only, and never a part of a stop text.

A token is a run of bytes and may end inside a character; a stop text may spread over tokens. What could still
become either is held back until the next token decides.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """The text of one continuation while it grows.

    Attributes:
        text: Everything so far; cut before a stop text once `stopped`.
        stopped: Whether a stop text appeared.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._ends: list[int] = []  # length of the text after each token
        self._given = 0
        self.text, self.stopped = "", False

    def add(self, token: bytes) -> str:
        """Take one token's bytes and return the text that is now certain; possibly none, and none once stopped."""
        if self.stopped:
            return ""
        before = len(self.text)
        self.text += self._decode(token)
        self._ends.append(len(self.text))
        self._cut(before)
        return self._give(len(self.text) - (0 if self.stopped else self._held()))

    def finish(self) -> str:
        """End the text and return what was held back; half a character becomes U+FFFD."""
        if not self.stopped:
            before = len(self.text)
            self.text += self._decode(b"", final=True)
            self._cut(before)
        return self._give(len(self.text))

    @property
    def token_count(self) -> int:
        """Tokens that the text is made of: all, or after a cut those before it."""
        if not self.stopped:
            return len(self._ends)
        return next((count for count, end in enumerate((0, *self._ends)) if end >= len(self.text)), len(self._ends))

    def _cut(self, before: int) -> None:
        first = max(0, before - max(map(len, self._stop), default=0) + 1)  # no stop text ended before
        found = [at for stop in self._stop if (at := self.text.find(stop, first)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """Characters at the end that may be the start of a stop text."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _give(self, end: int) -> str:
        piece, self._given = self.text[self._given : end], max(self._given, end)
        return piece
