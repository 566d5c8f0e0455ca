"""Ids of many documents in one call, the same as one by one and several times as fast.

Text repeats itself, so of many documents together each different word is tokenized once, and the ids are put together
again. GPT-2's pattern looks ahead in one place: of several white spaces before something else, all but the last are a
piece of their own. No word holds such a place, and a pattern that does not look ahead runs as an automaton, twice as
fast. Tokenizing releases the interpreter's lock, so several threads do it at once.

Shapes: N documents, U different words, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import tiktoken
from numpy.typing import NDArray

from model_core.data.words import END, Words
from model_core.tokenizer import Tokenizer

Ids = NDArray[np.uint32]

_CUT = "\x1f"  # between words; ASCII's own separator of units
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
_LONGEST = 100_000  # characters; longer documents may hold what needs more care


@lru_cache(maxsize=2)
def bulk_encoder(tokenizer: Tokenizer) -> BulkEncoder:
    """The encoder of a tokenizer; building it anew takes more than a second."""
    return BulkEncoder(tokenizer)


class BulkEncoder:
    """Encodes documents with a tokenizer; one encoder serves all threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import pyarrow.compute  # noqa: F401 - for the words; later, all threads would wait for it

        self._tokenizer, self._cut_id = tokenizer, tokenizer.n_vocab
        self._encoding = tiktoken.Encoding(
            f"{tokenizer.kind}-bulk",
            pat_str=_PATTERN,
            mergeable_ranks=tokenizer.ranks,
            special_tokens={END: tokenizer.eot, _CUT: self._cut_id},
        )

    def encode(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Encode documents, an end of text behind each.

        Args:
            texts: Documents, N of them, that UTF-8 can hold.

        Returns:
            Ids of all of them, (T,), and how many belong to each, (N,).
        """
        parts: list[Ids] = []
        plain: list[str] = []
        for text in texts:
            if len(text) <= _LONGEST and END not in text and _CUT not in text:
                plain.append(text)
                continue
            parts += [self._together(plain), self._alone(text)]
            plain = []
        ids = np.concatenate([*parts, self._together(plain)])  # (T,)
        ends = np.flatnonzero(ids == self._tokenizer.eot)  # (N,)
        return ids, np.diff(ends, prepend=-1)  # (T,), (N,)

    def _together(self, texts: list[str]) -> Ids:
        if not texts:
            return np.empty(0, np.uint32)
        words = Words(END.join((*texts, "")))
        marked = _CUT.join((*words.different, ""))
        ids = self._encoding.encode_to_numpy(marked, allowed_special="all", disallowed_special=())  # (T of words + U,)
        is_mark = ids == self._cut_id  # (T of words + U,)
        marks = np.flatnonzero(is_mark)  # (U,)
        return words.replaced(ids[~is_mark], marks - np.arange(len(marks)))  # (T,)

    def _alone(self, text: str) -> Ids:
        return np.array([*self._tokenizer.encode(text), self._tokenizer.eot], np.uint32)  # (T,)
