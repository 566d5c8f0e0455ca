"""Configurations: what is accepted, and that an error names the value and what would be right."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_core.config import NAME_PATTERN, ExperimentConfig, ModelConfig, divisors
from model_core.config_loader import load_config, merge_patch, parse_config, parse_yaml, preset_tree, to_yaml
from model_core.errors import ConfigFileNotFound, InvalidConfig, MalformedConfig
from model_core.storage.files import Layout

VALID_FOR_768 = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 768)


def refusals(tree: dict) -> list[tuple[str, str]]:
    try:
        parse_config(tree)
    except InvalidConfig as error:
        return [(problem.pointer, problem.detail) for problem in error.problems]
    return []


def problems(tree: dict) -> dict:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(tree)
    return {problem.pointer: problem for problem in caught.value.problems}


@pytest.mark.parametrize("heads", VALID_FOR_768)
def test_every_divisor_is_a_head_count_of_its_own(heads: int) -> None:
    config = parse_config({"model": {"n_layer": 1, "n_head_list": [heads]}}).config
    assert (config.model.heads, config.model.head_dims) == ((heads,), (768 // heads,))


def test_there_are_eighteen_head_counts_for_a_width_of_768() -> None:
    assert divisors(768) == VALID_FOR_768
    assert len(VALID_FOR_768) == 18


@pytest.mark.parametrize("name", ["../x", "", "x" * 64, ".hidden", "a b", "a/b", "a\\b", "-x", "x\n", 7])
def test_a_name_that_could_leave_its_directory_is_refused_with_one_that_is_right(name: object) -> None:
    problem = problems({"experiment_name": name})["/experiment_name"]
    assert problem.value == name
    assert all(re.fullmatch(NAME_PATTERN, near) for near in problem.nearest)
    assert len(problem.nearest) == (name != "")


def test_a_name_of_63_characters_is_taken() -> None:
    assert parse_config({"experiment_name": "x" * 63}).config.experiment_name == "x" * 63


def test_one_count_for_all_layers_is_held_to_the_width_too() -> None:
    problem = problems({"model": {"n_head": 10}})["/model/n_head"]
    assert problem.nearest == (8, 12)
    assert all(value in problem.detail for value in ("10", "768"))


def test_a_list_of_another_length_states_both_numbers() -> None:
    problem = problems({"model": {"n_head_list": [12] * 11}})["/model/n_head_list"]
    assert all(value in problem.detail for value in ("11", "12"))


@pytest.mark.parametrize(("heads", "nearest"), [(5, (4, 6)), (7, (6, 8)), (10, (8, 12)), (769, (768,))])
def test_a_count_that_does_not_divide_names_its_neighbours(heads: int, nearest: tuple[int, ...]) -> None:
    problem = problems({"model": {"n_layer": 2, "n_head_list": [12, heads]}})["/model/n_head_list"]
    assert problem.nearest == nearest
    assert f"layer 1: {heads} heads" in problem.detail
    assert problem.value == [12, heads]


@pytest.mark.parametrize(
    "heads",
    [[12, 12, 12, 10, 10, 10, 8, 8, 8, 6, 6, 6], [6, 8, 10, 12, 12, 12, 12, 12, 10, 8, 6, 4]],
    ids=["progressive", "hourglass"],
)
def test_the_documents_lists_with_ten_heads_are_refused(heads: list[int]) -> None:
    assert problems({"model": {"n_head_list": heads}})["/model/n_head_list"].nearest == (8, 12)


def test_a_head_size_of_its_own_needs_no_division() -> None:
    model = ModelConfig(n_layer=2, n_head_list=(5, 7), head_dim=16)
    assert model.head_dims == (16, 16)


def test_all_errors_come_in_one_answer() -> None:
    found = problems(
        {
            "experiment_name": "../x",
            "model": {"n_hed": 3},
            "training": {"total_batch_size": 1000, "max_lrr": 1},
            "execution": {"train": False},
            "data": {"split": [0.5, 0.5, 0.5]},
        }
    )
    assert set(found) == {
        "/experiment_name",
        "/model/n_hed",
        "/training/max_lrr",
        "/execution/train",
        "/data/split",
    }
    assert found["/model/n_hed"].nearest[0] == "n_head"


@pytest.mark.parametrize(
    ("tree", "pointer", "nearest"),
    [
        ({"model": {"n_head_list": [12] * 11}}, "/model/n_head_list", ()),
        ({"model": {"n_head_list": []}}, "/model/n_head_list", ()),
        ({"model": {"n_layer": 10**9}}, "/model/n_layer", ()),
        ({"model": {"n_layer": 0}}, "/model/n_layer", ()),
        ({"model": {"n_layer": 1.5}}, "/model/n_layer", ()),
        (
            {"model": {"vocab_size": 1000}, "data": {"tokenizer": {"type": "bpe", "vocab_size": 1024}}},
            "/model/vocab_size",
            (1024,),
        ),
        ({"model": {"n_layer": True}}, "/model/n_layer", ()),
        ({"model": {"vocab_size": 50000}}, "/model/vocab_size", (50257, 50304)),
        ({"training": {"sequence_length": 2048}}, "/training/sequence_length", (1024,)),
        ({"training": {"total_batch_size": 100_000}}, "/training/total_batch_size", (98304, 114688)),
        ({"training": {"total_batch_size": 1000}}, "/training/total_batch_size", (16384,)),
        ({"training": {"min_lr": 0.1}}, "/training/min_lr", (6e-4,)),
        ({"training": {"max_tokens": 715 * 524_288}}, "/training/warmup_steps", (714,)),
        ({"training": {"warmup_steps": 19073}}, "/training/warmup_steps", (19072,)),
        ({"testing": {"cmap": "viridiss"}}, "/testing/cmap", ("viridis",)),
        ({"testing": {"format": "gif"}}, "/testing/format", ()),
        ({"testing": {"dpi": 9}}, "/testing/dpi", ()),
        ({"testing": {"max_seq_len_viz": 0}}, "/testing/max_seq_len_viz", ()),
        ({"execution": {"train": False}}, "/execution/train", (True,)),
        ({"evaluation": {"val_loss_evry": 1}}, "/evaluation/val_loss_evry", ("val_loss_every",)),
        ({"max_lr": 1}, "/max_lr", ("training.max_lr",)),
        ({"data": {"source": "storys"}}, "/data/source", ("stories",)),
    ],
)
def test_bad_values_are_named_with_what_is_right(tree: dict, pointer: str, nearest: tuple) -> None:
    problem = problems(tree)[pointer]
    assert problem.nearest[: len(nearest)] == nearest
    assert problem.detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model:\n\tn_layer: 2", "line 2, column 1.* tabs"),
        ("model:\n  n_layer: 2\n n_head: 1", "line 3, column 2"),
        (
            "model: {n_layer: 1}\nmodel: {n_layer: 2}",
            "line 2, column 1.* 'model'",
        ),
        ("a: &a [1, 1]\nb: [*a, *a]", "aliases"),
        ("[" * 5000, "nested too deeply"),
        ("just text", "expected a mapping"),
        ("# only a comment", "got nothing"),
        ("a: [1", "line 1"),
    ],
)
def test_text_that_is_not_a_configuration_says_where(text: str, says: str) -> None:
    with pytest.raises(MalformedConfig, match=says):
        parse_yaml(text)


@pytest.mark.parametrize("written", ["1e-8", "1.0e-8", "'1e-8'", "0.00000001"])
def test_scientific_notation_is_a_number(written: str) -> None:
    assert parse_config(parse_yaml(f"training: {{eps: {written}}}")).config.training.eps == 1e-8


@pytest.mark.parametrize(
    ("old", "now"), [("val_interval", "val_loss_every"), ("val_loss_steps", "val_max_steps")], ids=lambda name: name
)
def test_old_names_of_keys_are_read_with_a_warning(old: str, now: str) -> None:
    parsed = parse_config({"evaluation": {old: 7}})
    assert getattr(parsed.config.evaluation, now) == 7
    assert [advice.code for advice in parsed.warnings] == ["deprecated_key"]
    assert all(f"evaluation.{name}" in parsed.warnings[0].detail for name in (old, now))


def test_samples_are_drawn_among_the_50_likeliest_tokens_unless_said() -> None:
    evaluation = parse_config({}).config.evaluation
    assert (evaluation.sample_top_k, evaluation.sample_temperature) == (50, 1.0)


def test_a_list_wins_over_a_count_and_says_so() -> None:
    parsed = parse_config({"model": {"n_head": 12, "n_head_list": [8] * 12}})
    assert parsed.config.model.heads == (8,) * 12
    assert [advice.code for advice in parsed.warnings] == ["n_head_ignored"]


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("training: {max_steps: 800, max_lr: 0.1}")
    config = load_config(file, ["training.max_steps=900", "model.n_head_list=[8, 8]", "model.n_layer=2"])
    assert (config.training.max_steps, config.training.max_lr, config.model.heads) == (900, 0.1, (8, 8))


@pytest.mark.parametrize("name", ["gone.yaml", "there.yml", "folder"])
def test_a_missing_file_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "there.yaml").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigFileNotFound, match=re.escape(str(tmp_path / name))):
        load_config(name)


def test_either_slash_leads_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text("output: {exp_dir: some\\exp, attention_dir: 'some\\pictures'}")
    monkeypatch.chdir(tmp_path)
    config = load_config("mine\\a.yaml")
    assert config == load_config("mine/a.yaml")
    layout = Layout.of(config)
    assert (layout.exp.as_posix(), layout.attention.as_posix()) == ("some/exp", "some/pictures")


def test_a_configuration_survives_its_yaml() -> None:
    config = parse_config(preset_tree("quickstart")).config
    assert parse_config(parse_yaml(to_yaml(config))).config == config


def test_merge_patch_follows_rfc_7396() -> None:
    assert merge_patch({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None, "e": [1]}, "d": None}) == {
        "a": {"c": 2, "e": [1]}
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*ExperimentConfig.model_fields, "other"]), json_values, max_size=4))
def test_wild_input_is_accepted_or_refused_with_pointers(tree: dict) -> None:
    assert all(pointer.startswith("/") and detail for pointer, detail in refusals(tree))
