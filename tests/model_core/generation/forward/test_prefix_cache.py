"""Blocks of prompts by the text before and in them, the least recently used dropped first."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.generation.forward.kv_cache import CHUNK
from model_core.generation.forward.prefix_cache import PrefixCache, chain

BLOCK = (torch.zeros(2, 1, CHUNK, 2), torch.zeros(2, 2, CHUNK, 1))
SIZE = 2 * 2 * CHUNK * 2 * 4  # bytes of one block


@settings(max_examples=30)
@given(st.lists(st.integers(0, 1), max_size=3 * CHUNK), st.lists(st.integers(0, 1), max_size=3 * CHUNK))
def test_keys_are_equal_exactly_as_far_as_the_texts_are(first: list[int], second: list[int]) -> None:
    keys = zip(chain(first), chain(second), strict=False)
    ends = range(CHUNK, 4 * CHUNK, CHUNK)

    assert len(chain(first)) == len(first) // CHUNK
    assert [a == b for a, b in keys] == [
        first[:end] == second[:end] for end in ends if end <= min(len(first), len(second))
    ]


def test_equal_chunks_behind_different_beginnings_have_different_keys() -> None:
    assert chain([1] * CHUNK + [3] * CHUNK)[1] != chain([2] * CHUNK + [3] * CHUNK)[1]
    assert chain([1] * CHUNK + [3])[0] == chain([1] * CHUNK + [4])[0]


def test_the_least_recently_used_block_goes_first() -> None:
    cache = PrefixCache(2 * SIZE + 1)
    cache.put(b"a", BLOCK)
    cache.put(b"b", BLOCK)
    assert cache.get(b"a") is BLOCK

    cache.put(b"c", BLOCK)

    assert cache.get(b"b") is None
    assert cache.get(b"a") is cache.get(b"c") is BLOCK
    assert (cache.size_bytes, cache.hits) == (2 * SIZE, 3)


def test_a_block_that_is_kept_is_not_wanted_again_and_stays_longer() -> None:
    cache = PrefixCache(2 * SIZE)
    cache.put(b"a", BLOCK)
    cache.put(b"b", BLOCK)

    assert not cache.wants(b"a")
    cache.put(b"c", BLOCK)

    assert cache.wants(b"b")
    assert cache.get(b"a") is BLOCK


def test_a_cache_without_memory_keeps_nothing() -> None:
    for cache in (PrefixCache(0), PrefixCache(SIZE - 1)):
        cache.put(b"a", BLOCK)
        assert cache.get(b"a") is None
        assert cache.size_bytes == 0
    assert not PrefixCache(0).wants(b"a")
