"""Parameters, memory and FLOPs of a configuration, compared with GPT-2 124M."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from model_core.budget import MemoryBudget, compute_budget, fitting_batch_size, saves_nothing, uniform_baseline
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config, preset_names, preset_tree

VARIABLE = [12] * 4 + [8] * 4 + [6] * 4


def config_of(**model: Any) -> ExperimentConfig:
    return parse_config({"model": model}).config


def test_gpt2_has_its_known_parameters_and_costs() -> None:
    budget = compute_budget(config_of())
    assert budget.parameters == 124_475_904
    assert budget.kv_bytes_per_token == 36_864
    assert round(budget.flops_per_token / 1e6) == 855
    assert budget.parameters == budget.embedding_parameters + sum(layer.parameters for layer in budget.layers)


def test_fewer_heads_at_the_same_width_save_nothing_but_softmax() -> None:
    variable, uniform = compute_budget(config_of(n_head_list=VARIABLE)), compute_budget(config_of())
    assert variable.parameters == uniform.parameters
    assert variable.kv_bytes_per_token == uniform.kv_bytes_per_token
    assert variable.flops_per_token == uniform.flops_per_token
    assert variable.softmax_elements < uniform.softmax_elements
    assert saves_nothing(variable, uniform)


def test_a_fixed_head_size_saves() -> None:
    narrow, uniform = compute_budget(config_of(n_head_list=VARIABLE, head_dim=64)), compute_budget(config_of())
    shared = compute_budget(config_of(n_head_list=VARIABLE))
    assert narrow.parameters == 116_603_904
    assert narrow.kv_bytes_per_token < uniform.kv_bytes_per_token
    assert narrow.flops_per_token < uniform.flops_per_token
    assert narrow.softmax_elements == shared.softmax_elements
    assert not saves_nothing(narrow, uniform)


def test_every_number_of_a_layer_follows_its_formula() -> None:
    layer = compute_budget(config_of(n_head_list=VARIABLE, head_dim=64)).layers[4]
    width, n_embd, length = 8 * 64, 768, 1024
    assert (layer.layer, layer.n_head, layer.head_dim) == (4, 8, 64)
    assert layer.parameters == 4 * n_embd * width + 3 * width + n_embd + 8 * n_embd**2 + 9 * n_embd
    assert layer.kv_bytes_per_token == 4 * width
    assert layer.flops_per_token == 6 * layer.parameters + 12 * width * length
    assert layer.softmax_elements == 8 * length * (length + 1) // 2


def test_parameters_equal_those_of_the_model() -> None:
    gpt = pytest.importorskip("model_core.gpt")
    config = config_of(n_layer=3, n_embd=48, n_head_list=[4, 2, 3], head_dim=8, vocab_size=50304, block_size=1024)
    assert compute_budget(config).parameters == sum(p.numel() for p in gpt.GPT(config.model).parameters())


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        ({"n_head_list": VARIABLE}, 12),
        ({"n_embd": 128, "n_layer": 4, "n_head_list": [8, 4, 2, 1]}, 8),
        ({"n_embd": 100, "n_layer": 1, "n_head_list": [7], "head_dim": 8}, 5),
    ],
)
def test_the_uniform_model_has_heads_that_divide_its_width(model: dict[str, Any], heads: int) -> None:
    uniform = uniform_baseline(config_of(**model)).model
    assert set(uniform.heads) == {heads}
    assert uniform.head_dim is None


def test_epochs_and_steps_follow_the_smallest_budget() -> None:
    training = {"max_epochs": 2, "warmup_steps": 1}
    schedule = compute_budget(parse_config({"training": training}).config, train_tokens=10 * 524_288).schedule
    assert (schedule.steps, schedule.accumulation, schedule.tokens) == (20, 32, 20 * 524_288)
    assert schedule.epochs == 2


def test_memory_counts_its_parts_and_wants_a_margin() -> None:
    memory = asdict(compute_budget(config_of()).memory)
    assert (memory["gradients_bytes"], memory["optimizer_bytes"]) == (4 * 124_475_904, 8 * 124_475_904)
    parts = ("base", "weights", "gradients", "optimizer", "activations", "logits", "attention")
    assert memory["total_bytes"] == sum(memory[f"{part}_bytes"] for part in parts)
    assert memory["required_bytes"] == int(1.2 * memory["total_bytes"])
    assert memory["measured"]


def test_every_part_of_the_memory_follows_what_fills_it() -> None:
    def memory(**training: Any) -> MemoryBudget:
        return compute_budget(parse_config({"training": training}).config).memory

    half, whole = memory(batch_size=8), memory(batch_size=16)
    assert (whole.logits_bytes, whole.activations_bytes) == (half.logits_bytes, 2 * half.activations_bytes)
    assert memory(batch_size=1, sequence_length=128).logits_bytes <= whole.logits_bytes
    assert whole.weights_bytes == half.weights_bytes
    assert memory(gradient_checkpointing=True).activations_bytes < whole.activations_bytes / 4
    dropped = compute_budget(config_of(dropout=0.1)).memory
    assert (whole.attention_bytes, dropped.attention_bytes > 0, dropped.measured) == (0, True, False)


def test_the_micro_batch_that_fits_is_the_largest_that_keeps_the_total() -> None:
    config = parse_config({"training": {"batch_size": 12, "total_batch_size": 12 * 1024}}).config
    fits = compute_budget(parse_config({"training": {"batch_size": 3, "total_batch_size": 12 * 1024}}).config).memory
    assert fitting_batch_size(config, fits.required_bytes) == 3
    assert fitting_batch_size(config, fits.required_bytes - 1) == 2
    assert fitting_batch_size(config, 1 << 30) is None


@pytest.mark.parametrize(("head_dim", "fits"), [(64, True), (256, True), (257, False), (384, False)])
def test_the_fused_kernel_takes_heads_up_to_a_size(head_dim: int, fits: bool) -> None:
    (layer,) = compute_budget(config_of(n_layer=1, n_head=2, head_dim=head_dim)).layers
    assert layer.flash is fits


def test_checkpoints_need_room_for_what_is_kept_and_the_one_being_written() -> None:
    evaluation = {"checkpoint_every": 100, "max_checkpoints_to_keep": 5}
    disk = compute_budget(parse_config({"evaluation": evaluation}).config).disk
    assert (disk.full_state_bytes, disk.weights_bytes) == (12 * 124_475_904, 4 * 124_475_904)
    assert (disk.periodic, disk.total_bytes) == (5, 8 * disk.full_state_bytes + 2 * disk.weights_bytes)
    few = parse_config({"evaluation": evaluation, "training": {"max_steps": 250, "warmup_steps": 1}}).config
    assert compute_budget(few).disk.periodic == 2
    none = parse_config({"checkpoint": {"save_best": False, "save_final": False}}).config
    assert compute_budget(none).disk.total_bytes % disk.full_state_bytes == 0


def test_the_documents_training_is_about_77_passes_over_babylm() -> None:
    schedule = compute_budget(config_of(), train_tokens=130_000_000).schedule
    assert (schedule.steps, schedule.tokens) == (19_073, 19_073 * 524_288)
    assert schedule.epochs == pytest.approx(76.9, abs=0.05)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_the_model_that_its_budget_counts(name: str) -> None:
    torch = pytest.importorskip("torch")
    from model_core.gpt import GPT

    config = parse_config(preset_tree(name)).config
    with torch.device("meta"):
        model = GPT(config.model)
    assert compute_budget(config).parameters == sum(p.numel() for p in model.parameters())
    assert [block.attn.n_head for block in model.blocks] == list(config.model.heads)


def test_a_budget_is_plain_json() -> None:
    tree = json.loads(json.dumps(compute_budget(config_of()).to_dict()))
    assert tree["parameters"] == 124_475_904
    assert len(tree["layers"]) == 12
    assert {"layer_parameters", "flops_per_token"} <= set(tree["formulas"])
