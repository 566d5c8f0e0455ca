"""Empty sections and null: nothing is given there, at every door."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from headcount.client import body_of
from model_core.config import ExperimentConfig
from model_core.config_loader import load_config
from model_core.config_schema import schema_of
from worker.jobs.spec import parse_spec

DEFAULTS = ExperimentConfig().model_dump(mode="json")
QUICKSTART = parse_spec({"job": {"preset": "quickstart"}}).config.model_dump(mode="json")
SECTIONS = [name for name, value in DEFAULTS.items() if isinstance(value, dict)]
KEYS = [(section, key) for section in SECTIONS for key in DEFAULTS[section]]

# What people write, and what is given below that section
EMPTY = [
    "training:",
    "training: null",
    "training: ~",
    "training: {}",
    "training:\n  # max_steps: 100\n  # max_lr: 0.1",
    "training:\n  max_steps:\n  max_lr: null",
    "model:\ntraining:\ndata:\nexecution:\ndevice:\njob:",
    "job:\n  resources:\n  priority:\n  metadata:\n  depends_on:\n  kind: null",
    "evaluation: {val_interval: }",
]


def validated(site: Any, body: str | dict[str, Any]) -> Any:
    if isinstance(body, dict):
        return site.http.post("/configs/validate", json=body)
    return site.http.post("/configs/validate", content=body, headers={"Content-Type": "application/yaml"})


@pytest.mark.parametrize("text", EMPTY)
def test_an_empty_section_gives_the_defaults(site: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    tree = yaml.safe_load(text)
    assert load_config(tmp_path / "mine.yaml").model_dump(mode="json") == DEFAULTS
    assert [validated(site, body).json()["config"] for body in (text, tree)] == [DEFAULTS, DEFAULTS]


@pytest.mark.parametrize("text", [text for text in EMPTY if "job" not in text])
def test_an_empty_section_below_a_preset_gives_the_presets(site: Any, text: str) -> None:
    tree = {**yaml.safe_load(text), "job": {"preset": "quickstart"}}
    bodies = (f"{text}\njob: {{preset: quickstart}}", tree)
    assert [validated(site, body).json()["config"] for body in bodies] == [QUICKSTART, QUICKSTART]


@pytest.mark.parametrize("section", [*SECTIONS, "experiment_name", "schema_version"])
def test_null_for_each_section_is_the_presets(section: str) -> None:
    tree = {section: None, "job": {"preset": "quickstart"}}
    assert parse_spec(tree).config.model_dump(mode="json") == QUICKSTART


def test_null_for_each_key_is_the_presets_unless_null_is_a_value() -> None:
    schema = schema_of(ExperimentConfig)
    nulls = {name: {key: None for section, key in KEYS if section == name} for name in SECTIONS}
    nulls["model"]["n_head"] = 12  # in all layers, once n_head_list is null
    nulls["model"]["n_embd"] = 768
    config = parse_spec({**nulls, "job": {"preset": "quickstart"}}).config.model_dump(mode="json")
    nullable = [(section, key) for section, key in KEYS if schema.below(section).below(key).is_nullable]
    assert ("model", "n_head_list") in nullable
    assert {config[section][key] for section, key in nullable} == {None}
    others = [(section, key) for section, key in KEYS if nulls[section][key] is None and (section, key) not in nullable]
    assert all(config[section][key] == QUICKSTART[section][key] for section, key in others)


@pytest.mark.parametrize("setting", ["training=null", "training.max_steps=null", "training.max_steps=~"])
def test_null_on_the_command_line_leaves_the_files_value(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {max_steps: 800}")
    sent, _ = body_of(str(file), [setting])
    assert load_config(file, [setting]).training.max_steps == json.loads(sent)["training"]["max_steps"] == 800


@pytest.mark.parametrize(
    "given",
    [{"stop": None}, {"temperature": None, "n": None}, {"top_k": None, "top_p": None, "stream": None},
     {"checkpoint": None, "seed": None, "prompt": None}],
)  # fmt: skip
def test_null_in_a_generation_is_not_given(site: Any, given: dict[str, Any]) -> None:
    site.make_run()
    site.add_host()
    replies = [site.http.post("/generate", json={"run": "tiny", "seed": 1, **body}) for body in ({}, given)]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].json().keys() == replies[1].json().keys()


def test_null_in_the_other_bodies_is_not_given(site: Any) -> None:
    job = site.submit(job={"priority": 3, "metadata": {"why": "x"}})
    changed = site.http.patch(job["links"]["self"], json={"priority": None, "metadata": None}).json()
    assert (changed["priority"], changed["metadata"]) == (3, {"why": "x"})
    site.make_run("exported")
    exported = site.http.post("/runs/exported/exports", json={"checkpoint": None, "licence": None})
    assert exported.status_code == 202
    keys = ("revision", "text_column", "split", "tokenizer", "seed", "dedupe")
    made = site.http.post("/datasets", json={"name": "new", "source": "stories", **dict.fromkeys(keys)})
    assert made.status_code == 202


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/generate", {"run": None}, "/run"),
        ("/datasets", {"name": None, "source": "stories"}, "/name"),
        ("/datasets", {"name": "new", "source": None}, "/source"),
    ],
)
def test_null_for_what_is_needed_is_missing(site: Any, path: str, body: dict[str, Any], pointer: str) -> None:
    reply = site.http.post(path, json=body)
    assert (reply.status_code, [error["pointer"] for error in reply.json()["errors"]]) == (422, [pointer])
    in_yaml = site.http.post(path, content=yaml.safe_dump(body), headers={"Content-Type": "application/yaml"})
    assert (in_yaml.status_code, [error["pointer"] for error in in_yaml.json()["errors"]]) == (422, [pointer])
