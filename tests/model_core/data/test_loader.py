"""Batches: every window once an epoch, and one number as the state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.data.loader import LoaderConfig, ShardedTokens, TokenLoader, load_tokens
from model_core.errors import InvalidData

TOKENS = np.arange(1001, dtype=np.uint16)


def starts(loader: TokenLoader, batches: int) -> list[int]:
    return [int(row[0]) for _ in range(batches) for row in loader.next_batch()[0]]


def test_targets_are_the_ids_one_further() -> None:
    idx, targets = TokenLoader(TOKENS, LoaderConfig(2, 10)).next_batch()
    assert idx.shape == targets.shape == (2, 10)
    assert idx.dtype == torch.int64
    assert torch.equal(targets, idx + 1)


@settings(deadline=None)
@given(size=st.integers(1, 7), seed=st.integers(0, 5), shuffle=st.sampled_from(["none", "block"]))
def test_an_epoch_holds_every_window_once(size: int, seed: int, shuffle: str) -> None:
    loader = TokenLoader(TOKENS, LoaderConfig(size, 10, shuffle, seed))
    seen = starts(loader, -(-200 // size))[:200]
    assert len(set(seen[:100])) == len(set(seen[100:])) == 100


@settings(deadline=None)
@given(before=st.integers(0, 150), seed=st.integers(0, 5))
def test_the_position_is_the_whole_state(before: int, seed: int) -> None:
    config = LoaderConfig(3, 10, "block", seed)
    straight, resumed = TokenLoader(TOKENS, config), TokenLoader(TOKENS, config)
    starts(straight, before)
    resumed.position = straight.position
    assert starts(resumed, 5) == starts(straight, 5)


def test_epochs_come_in_different_orders() -> None:
    loader = TokenLoader(TOKENS, LoaderConfig(100, 10, "block", 1))
    first, second = starts(loader, 1), starts(loader, 1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert loader.epoch == 2.0


def test_a_file_shorter_than_a_batch_is_named_with_what_a_batch_takes() -> None:
    with pytest.raises(InvalidData, match=r"tiny\.npy.* 50.* 81"):
        TokenLoader(TOKENS[:50], LoaderConfig(8, 10), name="tiny.npy")


def test_an_id_above_the_vocabulary_is_named() -> None:
    with pytest.raises(InvalidData, match="20"):
        TokenLoader(TOKENS, LoaderConfig(2, 10, vocab_size=20)).next_batch()


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(0, 1001), max_size=4), ranks=st.integers(1, 4), size=st.integers(1, 5),
    steps=st.integers(0, 60), after=st.integers(0, 60), shuffle=st.sampled_from(["none", "block"]),
    ahead=st.booleans(),
)  # fmt: skip
def test_ranks_of_a_row_in_shards_take_what_one_process_takes_of_it_whole(
    cuts: list[int], ranks: int, size: int, steps: int, after: int, shuffle: str, ahead: bool
) -> None:
    shards = ShardedTokens(np.split(TOKENS, sorted(cuts)))
    whole = TokenLoader(TOKENS, LoaderConfig(ranks * size, 10, shuffle, 3))
    expected = [starts(whole, 1) for _ in range(after + steps)][after:]
    configs = [LoaderConfig(size, 10, shuffle, 3, rank=rank, world_size=ranks) for rank in range(ranks)]
    loaders = [TokenLoader(shards, config, read_ahead=ahead) for config in configs]
    for loader in loaders:
        loader.next_batch()
        loader.position = after * ranks * size  # as after a resume: what was read ahead is not taken
    assert [[start for loader in loaders for start in starts(loader, 1)] for _ in range(steps)] == expected


@given(cuts=st.lists(st.integers(0, 1001), max_size=4), start=st.integers(0, 1001), length=st.integers(0, 300))
def test_a_part_of_a_row_in_shards_is_that_of_the_whole(cuts: list[int], start: int, length: int) -> None:
    shards = ShardedTokens(np.split(TOKENS, sorted(cuts)))
    assert len(shards) == 1001
    assert shards[start : start + length].tolist() == TOKENS[start : start + length].tolist()


def test_files_of_a_row_are_read_as_one_without_copying(tmp_path: Path) -> None:
    for number, part in enumerate(np.split(TOKENS, [400, 800])):
        np.save(tmp_path / f"x_train_{number:05d}.npy", part)
    tokens = load_tokens(tmp_path / "x_train.npy")
    assert len(tokens) == 1001
    assert tokens[390:410].tolist() == list(range(390, 410))
    assert isinstance(tokens[410:420].base, np.memmap)


def test_an_unknown_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2"):
        LoaderConfig(1, 1, rank=2, world_size=2)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint16), np.zeros(4), np.array([object()])])
def test_other_files_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InvalidData, match=r"x\.npy"):
        load_tokens(tmp_path / "x.npy")


def handed_out(config: LoaderConfig, begun: int, batches: int) -> tuple[list[torch.Tensor], int]:
    """Batches from a place in the middle, and the place after them."""
    loader = TokenLoader(TOKENS, config)
    loader.position = begun
    return [loader.next_batch()[0] for _ in range(batches)], loader.position


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["none", "block"]), st.integers(0, 5), st.integers(1, 4))
def test_ranks_share_the_rows_that_one_process_would_take(
    ranks: int, size: int, shuffle: str, steps: int, batches: int
) -> None:
    begun = steps * ranks * size
    alone, position = handed_out(LoaderConfig(ranks * size, 10, shuffle, 3), begun, batches)
    shares = [handed_out(LoaderConfig(size, 10, shuffle, 3, 2**32, r, ranks), begun, batches) for r in range(ranks)]
    together = [torch.cat(rows) for rows in zip(*(rows for rows, _ in shares), strict=True)]  # each (ranks * size, 10)
    assert torch.equal(torch.stack(together), torch.stack(alone))
    assert {after for _, after in shares} == {position}


def test_file_that_is_too_short_for_a_batch_of_all_ranks_is_refused() -> None:
    with pytest.raises(InvalidData, match="161"):
        TokenLoader(TOKENS[:150], LoaderConfig(8, 10, rank=1, world_size=2), name="short.npy")
