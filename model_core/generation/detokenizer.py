"""Tokens to text as they come: whole characters only, and never a part of a stop string.

A token is a run of bytes and may end inside a character; a stop string may spread over several tokens. Text that could
still become either is held back until the next token decides. Stop strings are followed character by character (Knuth,
Morris and Pratt, 1977), so where a text ends does not depend on its tokens, and long stop strings cost no more time.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache


class Detokenizer:
    """The growing text of one sequence.

    Args:
        stop: Strings that end the text: the one that is complete first; of those that are complete at the same
            character, the longest.

    Attributes:
        text: Everything so far; cut before the stop string once `stopped`.
        stopped: Whether a stop string appeared.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [(text, _borders(text)) for text in stop]
        self._matched = [0] * len(stop)  # characters of each stop string that the text ends with
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
        return self._delta(len(self.text) - (0 if self.stopped else max(self._matched, default=0)))

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
        if not self._stop:
            return
        for end, character in enumerate(self.text[before:], before + 1):
            self._matched = [
                _advance(stop, borders, matched, character)
                for (stop, borders), matched in zip(self._stop, self._matched, strict=True)
            ]
            complete = [
                len(stop) for (stop, _), size in zip(self._stop, self._matched, strict=True) if size == len(stop)
            ]
            if complete:
                self.text, self.stopped = self.text[: end - max(complete)], True
                return

    def _delta(self, end: int) -> str:
        delta, self._returned = self.text[self._returned : end], max(self._returned, end)
        return delta


@lru_cache(maxsize=1024)
def _borders(text: str) -> tuple[int, ...]:
    """Compute for each prefix of a text the length of its longest proper prefix that it also ends with."""
    borders, size = [0], 0
    for character in text[1:]:
        size = _advance(text, borders, size, character)
        borders.append(size)
    return tuple(borders)


def _advance(text: str, borders: Sequence[int], size: int, character: str) -> int:
    """Characters of a text that a string ends with after one more, if it ended with `size`, fewer than all."""
    while size and text[size] != character:
        size = borders[size - 1]
    return size + 1 if text[size] == character else 0
