"""Documents are assigned to splits exactly in every block of a hundred."""

from collections import Counter

import pytest

from model_core.data.chunking import apportion, assign_splits

SHARES = (0.90, 0.09, 0.01)


def test_every_hundred_documents_are_split_exactly():
    splits = [split for split, _ in assign_splits(map(str, range(1000)), SHARES, 7)]
    for block in range(10):
        assert Counter(splits[100 * block :][:100]) == {"train": 90, "val": 9, "test": 1}


@pytest.mark.parametrize(
    ("count", "shares", "parts"),
    [
        (100, SHARES, [90, 9, 1]),
        (50, SHARES, [45, 5, 0]),
        (60, SHARES, [54, 5, 1]),
        (1, SHARES, [1, 0, 0]),
        (0, SHARES, [0, 0, 0]),
        (7, (0.5, 0.25, 0.25), [3, 2, 2]),
        (10, (1.0, 0.0, 0.0), [10, 0, 0]),
    ],
)
def test_a_partial_block_follows_the_largest_remainders(count, shares, parts):
    assert apportion(count, shares) == parts


def test_documents_keep_their_order_and_the_seed_decides_where_they_go():
    documents = [str(number) for number in range(250)]
    first, again, other = (list(assign_splits(documents, SHARES, seed)) for seed in (1, 1, 2))
    assert [document for _, document in first] == documents
    assert first == again
    assert first != other


def test_blocks_are_split_differently():
    test = [int(document) for split, document in assign_splits(map(str, range(1000)), SHARES, 1) if split == "test"]
    assert len({number % 100 for number in test}) > 5
