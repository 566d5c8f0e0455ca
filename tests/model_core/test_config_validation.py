"""Comparison of two models and of two trees of values."""

from model_core.config import ModelConfig
from model_core.config_validation import model_differences, tree_differences


def test_models_of_one_shape_fit_however_it_is_written() -> None:
    listed = ModelConfig(n_layer=2, n_head=1, n_embd=16, n_head_list=(4, 4), dropout=0.5)
    assert model_differences(listed, ModelConfig(n_layer=2, n_head=4, n_embd=16), there="x") == []


def test_a_difference_names_the_key_both_values_and_the_other_model() -> None:
    ours, theirs = (ModelConfig(n_layer=2, n_embd=16, n_head=heads) for heads in (2, 4))
    assert model_differences(ours, theirs, there="run 'a'") == [
        "model.n_head_list is [2, 2] here and [4, 4] in run 'a'",
        "model.head_dim is [8, 8] here and [4, 4] in run 'a'",
    ]


def test_only_the_keys_that_count_are_compared() -> None:
    ours, theirs = ModelConfig(block_size=64, dropout=0.5), ModelConfig(block_size=32)
    assert model_differences(ours, theirs, there="x", keys={"block_size"}) == [
        "model.block_size is 64 here and 32 in x"
    ]
    assert model_differences(ours, theirs, there="x", keys=()) == []


def test_trees_are_compared_key_by_key() -> None:
    ours, theirs = {"a": {"b": 1, "c": 3}, "d": 4}, {"a": {"b": 1, "c": 2}}
    assert tree_differences(ours, theirs, there="x") == ["a.c is 3 here and 2 in x", "d is 4 here and null in x"]
