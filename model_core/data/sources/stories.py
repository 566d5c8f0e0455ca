"""Short child-like stories from a seed: a corpus that needs no network and that a small model learns in a minute.

A story is an opening, a plot and a closing. Its people and things are drawn when they are first named and kept
to the end. Stories vary by combination, so a model that has learned them writes new ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from model_core.data.sources.story_text import BOYS, CLOSING, DETAIL, GIRLS, LISTS, OPENING, PLACES, PLOTS

STORY_COUNT = 6500
VERSION = "stories 1"  # changes whenever one seed would give other text

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w)(\w*?)(\d?)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_DETAIL_SHARE = 0.5
_CORE, _CORE_SHARE = 8, 0.93
T = TypeVar("T")


def stories(seed: int, count: int = STORY_COUNT) -> Iterator[str]:
    """Generate stories; equal seeds give equal stories.

    Args:
        seed: Decides everything.
        count: How many.

    Yields:
        The text of each story.
    """
    for number in range(count):
        yield _Teller(random.Random(f"{VERSION}/{seed}/{number}")).tell()


class _Teller:
    """Tells one story and remembers who and what is in it."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._cast: dict[str, str] = {}
        self._introduce()

    def tell(self) -> str:
        plot, focus = self._pick(PLOTS)
        self._focus = focus
        details = [DETAIL] if self._source.random() < _DETAIL_SHARE else []
        return " ".join(self._say(self._pick(step)) for step in (OPENING, *details, *plot, CLOSING))

    def _introduce(self) -> None:
        hero_is_girl, friend_is_girl = (self._pick((True, False)) for _ in range(2))
        self._cast.update(zip(("he", "him", "his", "child"), _PRONOUNS[hero_is_girl], strict=True))
        self._cast["hero"] = self._pick(GIRLS if hero_is_girl else BOYS)
        others = [name for name in (GIRLS if friend_is_girl else BOYS) if name != self._cast["hero"]]
        self._cast["friend"] = self._pick(others)

    def _say(self, template: str) -> str:
        chosen = _CHOICE.sub(lambda match: self._pick(match[1].split("|")), template)
        filled = _SLOT.sub(self._fill, chosen)
        return _capital(_ARTICLE.sub(r"\1n ", filled))

    def _fill(self, match: re.Match[str]) -> str:
        initial, rest, number = match.groups()
        word = self._word(initial.lower() + rest, number)
        return _capital(word) if initial.isupper() else word

    def _word(self, kind: str, number: str) -> str:
        """The story's own word of a kind, drawn when it is first asked for."""
        if kind == "focus":
            kind = self._focus
        if kind + number not in self._cast:
            if kind in {"at", "place"}:
                at, place = self._draw([pair for pair in PLACES if pair[1] not in self._cast.values()])
                self._cast.update({f"at{number}": at, f"place{number}": place})
            else:
                taken = {word for key, word in self._cast.items() if key.rstrip("0123456789") == kind}
                self._cast[kind + number] = self._draw([word for word in LISTS[kind] if word not in taken])
        return self._cast[kind + number]

    def _draw(self, options: Sequence[T]) -> T:
        """Take one, mostly of the first dozen: a tail of rarer words is heard, but rarely, as in speech."""
        core = self._source.random() < _CORE_SHARE or len(options) <= _CORE
        return self._pick(options[:_CORE] if core else options[_CORE:])

    def _pick(self, options: Sequence[T]) -> T:
        return self._source.choice(options)


_PRONOUNS = {True: ("she", "her", "her", "girl"), False: ("he", "him", "his", "boy")}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
