"""Generated stories: varied, clean, and equal for equal seeds."""

import re
from collections import Counter

import pytest

from model_core.data.sources.stories import stories
from model_core.data.sources.story_text import CLOSING, DETAIL, FRIEND, LISTS, OPENING, PLOTS

RUN = 25  # words


@pytest.fixture(scope="module")
def told():
    return list(stories(1337))


def runs(story):
    words = story.split()
    return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


def test_there_are_two_megabytes_and_a_thousand_words(told):
    assert sum(len(story.encode()) for story in told) >= 2_000_000
    assert len(Counter(word.lower() for story in told for word in re.findall("[A-Za-z]+", story))) >= 1000


def test_a_story_is_clean_text(told):
    for story in told:
        assert re.fullmatch(r"[A-Za-z ,.!?\"]+", story), story
        assert story[0].isupper()
        assert story[-1] == "."
        assert story.count('"') % 2 == 0
        assert not re.search(r"\ba [aeiou]|\ban (?!hon)[^aeiou]|  |[.!?] [a-z]|(\b\w+\b) \1\b", story), story
        assert 40 <= len(story.split()) <= 130


def test_the_seed_decides_everything(told):
    assert list(stories(1337, 50)) == told[:50]
    assert list(stories(1, 50)) != told[:50]


def test_what_was_lost_is_what_is_found(told):
    lost = [match for story in told if (match := re.search(r"lost the (\w+)\..*(?:saw|them|found) the (\w+) ", story))]
    assert len(lost) > 50
    assert all(match[1] == match[2] for match in lost)


def test_long_runs_of_words_hardly_ever_repeat(told):
    heard = set().union(*(runs(story) for story in told[:-500]))
    repeated = sum(not heard.isdisjoint(runs(story)) for story in told[-500:])
    assert repeated <= 10


def test_every_slot_has_its_list():
    templates = [text for plot, _ in PLOTS for step in plot for text in step]
    templates += [*OPENING, *DETAIL, *FRIEND, *CLOSING, *(f"{{{focus}}}" for _, focus in PLOTS)]
    slots = {slot.lower() for text in templates for slot in re.findall(r"\{([A-Za-z]+)\d?\}", text)}
    people = {"hero", "friend", "he", "him", "his", "child", "at", "place", "focus"}
    assert slots - people == set(LISTS)
