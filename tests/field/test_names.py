"""Names that YAML reads as something else, and wrong values for which the right one is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headcount.client import body_of
from model_core.config_loader import load_config, parse_config, parse_yaml, to_yaml
from model_core.data import prepare
from model_core.errors import InvalidConfig
from model_core.train import main as train
from service.protocol.parsing import parse_body
from worker.jobs.spec import JobRequest, parse_spec

NAMES = [
    "2026-11-30",
    "42",
    "0007",
    "no",
    "null",
    "true",
    "False",
    "1e5",
    "0x1F",
    "0o17",
    "1_000",
    "y",
    "Off",
    "12e03",
    "NULL",
]
PYTHON = re.compile(r"\b(tuple|dict|NoneType|None|True|False|bool|int|str|float|pydantic|Input|instance)\b|\^\[")

# What people write, where that is wrong, and what would be right
WRONG = [
    ("model: {n_head: [8, 4, 2, 1]}", "/model/n_head", ["n_head_list"]),
    ("model: {n_head: '8,4,2,1'}", "/model/n_head", ["n_head_list"]),
    ("model: {n_head_list: 8}", "/model/n_head_list", ["n_head"]),
    ("model: {n_head: '12'}", "/model/n_head", [12]),
    ("model: {n_layer: 12.5}", "/model/n_layer", [12, 13]),
    ("model: {n_layer: true}", "/model/n_layer", []),
    ("model: {n_layer: [12]}", "/model/n_layer", []),
    ("model: [12]", "/model", []),
    ("model: 12", "/model", []),
    ("device: {dtype: fp16}", "/device/dtype", ["float16"]),
    ("device: {dtype: FP16}", "/device/dtype", ["float16"]),
    ("device: {dtype: half}", "/device/dtype", ["float16"]),
    ("device: {dtype: bf16}", "/device/dtype", ["bfloat16"]),
    ("device: {dtype: fp32}", "/device/dtype", ["float32"]),
    ("device: {dtype: 32}", "/device/dtype", ["float32"]),
    ("device: {dtype: torch.bfloat16}", "/device/dtype", ["bfloat16"]),
    ("device: {device: gpu}", "/device/device", ["cuda"]),
    ("device: {device: 'cuda:0'}", "/device/device", ["cuda"]),
    ("device: {tf32: yes}", "/device/tf32", [True]),
    ("device: {tf32: 0}", "/device/tf32", [False]),
    ("testing: {format: jpeg}", "/testing/format", ["png"]),
    ("logging: {wandb: on}", "/logging/wandb", ["online"]),
    ("training: {max_steps: '1000'}", "/training/max_steps", [1000]),
    ("training: {max_steps: 1_000}", "/training/max_steps", [1000]),
    ("training: {max_steps: 10,000}", None, []),
    ("training: {batch_size: 0}", "/training/batch_size", []),
    ("data: {source: roneneldan/TinyStories}", "/data/source", ["hub:roneneldan/TinyStories"]),
    ("data: {source: 'owner/name:config'}", "/data/source", ["hub:owner/name:config"]),
    ("data: {source: 'https://huggingface.co/datasets/owner/name'}", "/data/source", ["hub:owner/name"]),
    ("data: {tokenizer: bpe}", "/data/tokenizer", [{"type": "bpe", "vocab_size": 1024}]),
    ("data: {split: [0.9, 0.1]}", "/data/split/2", []),
    ("data: {dataset: 'my data'}", "/data/dataset", ["my-data"]),
    ("experiment_name: my run", "/experiment_name", ["my-run"]),
    ("experiment_name: größer/als", "/experiment_name", ["grosser-als"]),
    ("experiment_name: ../../etc", "/experiment_name", ["etc"]),
    ("experiment_name: [a]", "/experiment_name", []),
    ("experiment_name: 日本", "/experiment_name", []),
    ("job: {depends_on: [job_1]}", "/job/depends_on/0", []),
    ("job: {kind: training}", "/job/kind", ["train"]),
    ("job: {kind: export, licence: MIT License}", "/job/licence", []),
    ("job: {metadata: [a]}", "/job/metadata", []),
    ("job: {metadata: {a: [1]}}", "/job/metadata/a", []),
]  # fmt: skip
ADDRESSES = [
    ("GET", "/runs/my%20run", None, ["my-run"]),
    ("GET", "/datasets/.x", None, ["x"]),
    ("GET", "/jobs?run=a+b", None, ["a-b"]),
    ("GET", "/generate?run=a%2Fb", None, ["a-b"]),
    ("GET", "/attention/tiny/x", None, []),
    ("POST", "/jobs?run=a+b", {}, ["a-b"]),
    ("POST", "/datasets", {"name": "a b", "source": "stories"}, ["a-b"]),
    ("POST", "/datasets", {"name": 7, "source": "stories"}, ["7"]),
    ("POST", "/datasets", {"name": "new", "source": "stories", "tokenizer": "bpe"}, [{"type": "bpe",
    "vocab_size": 1024}]),
    ("POST", "/generate", {"run": "tiny", "n": "two"}, []),
    ("POST", "/generate", {"run": "tiny", "stop": {"a": 1}}, []),
    ("POST", "/generate", {"run": 7}, ["7"]),
    ("POST", "/runs/tiny/exports", {"checkpoint": ["best"]}, []),
]  # fmt: skip


def send(site: Any, text: str, **options: Any) -> Any:
    return site.http.post("/jobs", content=text, headers={"Content-Type": "application/yaml"}, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_travels_as_text_through_files_and_settings(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"experiment_name: {name}\ndata: {{train_file: {name}, data_dir: {name}}}\n")
    config = load_config(file)
    assert (config.experiment_name, config.data.train_file, config.data.data_dir) == (name, name, name) or (
        name.lower() == "null" and config.experiment_name == name  # null is no file's name
    )
    for setting in (f"experiment_name={name}", f'experiment_name="{name}"', f"experiment_name='{name}'"):
        (tmp_path / "other.yaml").write_text("experiment_name: other")
        assert load_config(tmp_path / "other.yaml", [setting]).experiment_name == name
        body, kind = body_of(str(tmp_path / "other.yaml"), [setting])
        assert parse_spec(parse_body(body, kind, JobRequest)).run == name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_travels_as_text_through_the_service(site: Any, name: str) -> None:
    text = f"job: {{preset: quickstart, metadata: {{who: '{name}'}}}}\nexperiment_name: {name}"
    by_body = send(site, text)
    by_query = send(site, "job: {preset: quickstart}", params={"run": f"{name}-2"})
    listed = site.http.get("/jobs", params={"run": name}).json()["data"]
    assert (by_body.json()["run"], by_query.json()["run"]) == (name, f"{name}-2")
    assert ([job["run"] for job in listed], by_body.json()["metadata"]) == ([name], {"who": name})
    body = f"name: {name}-d\nsource: pydoc\n" if name.lower() == "null" else f"name: {name}\nsource: pydoc\n"
    made = site.http.post("/datasets", content=body, headers={"Content-Type": "application/yaml"})
    assert made.json()["dataset"] in {name, f"{name}-d"}


@pytest.mark.parametrize("name", [*NAMES, "a\u2028b", "x\x85y", "#1", "a: b", "1e-3"])
def test_a_configuration_that_we_write_reads_back_equal_in_old_and_new_yaml(name: str) -> None:
    config = parse_config({"data": {"dataset": "0007", "train_file": name, "source": f"file:{name}"}}).config
    text = to_yaml(config)
    assert parse_config(parse_yaml(text)).config == config
    assert yaml.safe_load(text) == config.model_dump(mode="json")


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("name", ["0007", "no", "null"])
def test_a_program_takes_a_name_as_text(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{}")
    assert train(["--config", str(file), "--run", name, "--data-root", str(tmp_path), "--set", "execution.test=true",
                  "--set", "execution.train=false"]) == 2  # fmt: skip
    assert f"'{name}'" in capsys.readouterr().err  # there is no such run
    assert prepare.main(["--source", f"file:{file}", "--name", name, "--data-root", str(tmp_path), "--seed", "1e3",
                         "--tokenizer", "bpe:300"]) == 2  # fmt: skip
    capsys.readouterr()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("name", ["", "a b", "'x'", "../x"])
def test_a_wrong_name_of_a_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    assert train(["--config", str(tmp_path / "mine.yaml"), "--run", name]) == 2
    assert prepare.main(["--source", "stories", "--name", name, "--data-root", str(tmp_path)]) == 2
    assert not PYTHON.search(capsys.readouterr().err)


@pytest.mark.parametrize(
    "setting", ["experiment_name=", "training.max_steps=", "training.max_steps", "=1", "model.n_head=[1"]
)
def test_a_setting_without_a_value_is_refused(tmp_path: Path, setting: str) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    with pytest.raises(InvalidConfig):
        load_config(tmp_path / "mine.yaml", [setting])


@pytest.mark.parametrize(("text", "pointer", "nearest"), WRONG)
def test_a_wrong_value_is_answered_with_what_is_right(site: Any, text: str, pointer: str | None, nearest: list) -> None:
    problem = send(site, text).json()
    errors = {error["pointer"]: error["nearest"] for error in problem["errors"]}
    assert problem["status"] == (422 if pointer else 400)
    assert errors.get(pointer or "", []) == nearest
    assert not PYTHON.search(problem["detail"])


@pytest.mark.parametrize(("method", "address", "body", "nearest"), ADDRESSES)
def test_a_wrong_value_of_a_request_is_answered_with_what_is_right(
    site: Any, method: str, address: str, body: Any, nearest: list
) -> None:
    reply = site.http.request(method, address, json=body)
    assert (reply.status_code, [error["nearest"] for error in reply.json()["errors"]]) == (422, [nearest])
    assert not PYTHON.search(reply.json()["detail"])
