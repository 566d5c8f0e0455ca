"""The arithmetic of a configuration, against the numbers of GPT-2 124M."""

import json
from typing import Any

import pytest

from model_core.budget import budget_of, comparison, saves_nothing, text_table, uniform_of
from model_core.config import ExperimentConfig
from model_core.loading import parse_config

VARIABLE = [12] * 4 + [8] * 4 + [6] * 4


def config_of(**model: Any) -> ExperimentConfig:
    return parse_config({"model": model}).config


def test_gpt2_has_its_known_parameters_and_costs() -> None:
    budget = budget_of(config_of())
    assert budget.parameters == 124_475_904
    assert budget.kv_bytes_per_token == 36_864
    assert round(budget.flops_per_token / 1e6) == 855
    assert budget.parameters == budget.embedding_parameters + sum(layer.parameters for layer in budget.layers)


def test_fewer_heads_at_the_same_width_save_nothing_but_softmax() -> None:
    variable, uniform = budget_of(config_of(n_head_list=VARIABLE)), budget_of(config_of())
    assert variable.parameters == uniform.parameters
    assert variable.kv_bytes_per_token == uniform.kv_bytes_per_token
    assert variable.flops_per_token == uniform.flops_per_token
    assert variable.softmax_elements < uniform.softmax_elements
    assert saves_nothing(variable, uniform)


def test_a_fixed_head_size_saves() -> None:
    narrow, uniform = budget_of(config_of(n_head_list=VARIABLE, head_dim=64)), budget_of(config_of())
    assert narrow.parameters == 116_603_904
    assert narrow.kv_bytes_per_token < uniform.kv_bytes_per_token
    assert narrow.flops_per_token < uniform.flops_per_token
    assert not saves_nothing(narrow, uniform)


def test_every_number_of_a_layer_follows_its_formula() -> None:
    layer = budget_of(config_of(n_head_list=VARIABLE, head_dim=64)).layers[4]
    width, n_embd, length = 8 * 64, 768, 1024
    assert (layer.layer, layer.n_head, layer.head_dim) == (4, 8, 64)
    assert layer.parameters == 4 * n_embd * width + 3 * width + n_embd + 8 * n_embd**2 + 9 * n_embd
    assert layer.kv_bytes_per_token == 4 * width
    assert layer.flops_per_token == 6 * layer.parameters + 12 * width * length
    assert layer.softmax_elements == 8 * length * (length + 1) // 2


def test_parameters_equal_those_of_the_model() -> None:
    gpt = pytest.importorskip("model_core.gpt")
    config = config_of(n_layer=3, n_embd=48, n_head_list=[4, 2, 3], head_dim=8, vocab_size=50304, block_size=1024)
    assert budget_of(config).parameters == sum(p.numel() for p in gpt.GPT(config.model).parameters())


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        ({"n_head_list": VARIABLE}, 12),
        ({"n_embd": 128, "n_layer": 4, "n_head_list": [8, 4, 2, 1]}, 8),
        ({"n_embd": 100, "n_layer": 1, "n_head_list": [7], "head_dim": 8}, 5),
    ],
)
def test_the_uniform_model_has_heads_that_divide_its_width(model: dict[str, Any], heads: int) -> None:
    uniform = uniform_of(config_of(**model)).model
    assert set(uniform.heads) == {heads}
    assert uniform.head_dim is None


def test_epochs_and_steps_follow_the_smallest_budget() -> None:
    training = {"max_epochs": 2, "warmup_steps": 1}
    schedule = budget_of(parse_config({"training": training}).config, train_tokens=10 * 524_288).schedule
    assert (schedule.steps, schedule.accumulation, schedule.tokens) == (20, 32, 20 * 524_288)
    assert schedule.epochs == 2


def test_memory_counts_its_parts_and_wants_a_margin() -> None:
    memory = budget_of(config_of()).memory
    assert memory.weights_bytes == 18 * 124_475_904
    assert memory.total_bytes == memory.base_bytes + memory.weights_bytes + memory.activations_bytes + (
        memory.cross_entropy_bytes + memory.attention_bytes
    )
    assert memory.required_bytes > memory.total_bytes
    assert memory.measured


def test_a_budget_is_plain_json() -> None:
    tree = json.loads(json.dumps(budget_of(config_of()).to_dict()))
    assert tree["parameters"] == 124_475_904
    assert len(tree["layers"]) == 12
    assert {"layer_parameters", "flops_per_token"} <= set(tree["formulas"])


def test_the_table_says_that_nothing_is_saved() -> None:
    config = config_of(n_head_list=VARIABLE)
    budget, uniform = budget_of(config), budget_of(uniform_of(config))
    assert "Set model.head_dim to save" in text_table(budget, uniform)
    assert comparison(budget, uniform)[0].difference == "same"
