"""Generated children's stories: a source that needs no network and that a small model learns in a minute.

A story consists of an opening, a plot and a closing. Each slot of its templates gets a random word when it is first
used and keeps it. Stories are combinations of common parts, so a trained model can generate new ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from model_core.data.sources.story_text import BOYS, CLOSING, DETAIL, GIRLS, LISTS, OPENING, PLACES, PLOTS

STORY_COUNT = 6500
VERSION = "stories 1"  # must change when the text of a seed changes

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w)(\w*?)(\d?)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_DETAIL_SHARE = 0.5
_CORE, _CORE_SHARE = 8, 0.93  # the first words of a list, and their share of the draws
_PRONOUNS = {True: ("she", "her", "her", "girl"), False: ("he", "him", "his", "boy")}

T = TypeVar("T")


def stories(seed: int, count: int = STORY_COUNT) -> Iterator[str]:
    """Generate stories; equal seeds give equal stories.

    Args:
        seed: Seed of the stories.
        count: Number of stories.

    Yields:
        The text of each story.
    """
    for number in range(count):
        yield _StoryGenerator(random.Random(f"{VERSION}/{seed}/{number}")).generate()


class _StoryGenerator:
    """Generates one story and keeps the word of every slot."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._slots: dict[str, str] = {}
        self._fill_characters()

    def generate(self) -> str:
        plot, focus = self._choose(PLOTS)
        self._focus = focus
        details = [DETAIL] if self._rng.random() < _DETAIL_SHARE else []
        return " ".join(self._render(self._choose(step)) for step in (OPENING, *details, *plot, CLOSING))

    def _fill_characters(self) -> None:
        hero_is_girl, friend_is_girl = (self._choose((True, False)) for _ in range(2))
        self._slots.update(zip(("he", "him", "his", "child"), _PRONOUNS[hero_is_girl], strict=True))
        self._slots["hero"] = self._choose(GIRLS if hero_is_girl else BOYS)
        others = [name for name in (GIRLS if friend_is_girl else BOYS) if name != self._slots["hero"]]
        self._slots["friend"] = self._choose(others)

    def _render(self, template: str) -> str:
        chosen = _CHOICE.sub(lambda match: self._choose(match[1].split("|")), template)
        filled = _SLOT.sub(self._fill, chosen)
        return _capital(_ARTICLE.sub(r"\1n ", filled))

    def _fill(self, match: re.Match[str]) -> str:
        initial, rest, number = match.groups()
        word = self._word(initial.lower() + rest, number)
        return _capital(word) if initial.isupper() else word

    def _word(self, kind: str, number: str) -> str:
        """Return the word of a slot; draw it at its first use."""
        if kind == "focus":
            kind = self._focus
        if kind + number not in self._slots:
            if kind in {"at", "place"}:
                at, place = self._draw([pair for pair in PLACES if pair[1] not in self._slots.values()])
                self._slots.update({f"at{number}": at, f"place{number}": place})
            else:
                taken = {word for key, word in self._slots.items() if key.rstrip("0123456789") == kind}
                self._slots[kind + number] = self._draw([word for word in LISTS[kind] if word not in taken])
        return self._slots[kind + number]

    def _draw(self, options: Sequence[T]) -> T:
        """Choose an option, usually one of the first; the others are rare, like rare words in natural text."""
        core = self._rng.random() < _CORE_SHARE or len(options) <= _CORE
        return self._choose(options[:_CORE] if core else options[_CORE:])

    def _choose(self, options: Sequence[T]) -> T:
        return self._rng.choice(options)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
