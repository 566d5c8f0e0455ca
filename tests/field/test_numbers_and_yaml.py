"""Numbers, booleans and odd YAML, at every door: what was stored is what YAML 1.2 or JSON says, or it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from headcount.client import body_of
from model_core.config_loader import load_config, parse_config, parse_yaml, to_yaml
from model_core.errors import InvalidConfig, MalformedConfig, ModelCoreError
from model_core.storage.run import Run
from service.protocol.errors import MalformedBody
from service.protocol.parsing import parse_body, parse_json
from worker.jobs.spec import JobRequest

REFUSED = "refused"
YAML_TYPE, JSON_TYPE = "application/yaml", "application/json"

# What people write for a key, and what it is
WRITTEN = [
    ("training.max_steps", "1e9", 10**9),
    ("training.max_steps", "1000.0", 1000),
    ("training.max_steps", "5e5", 500_000),
    ("training.max_steps", "5E+5", 500_000),
    ("training.max_tokens", "1e9", 10**9),
    ("training.max_tokens", "2.5e9", 2_500_000_000),
    ("training.batch_size", "0100", 100),
    ("training.max_steps", "0x3e8", 1000),
    ("training.max_steps", "0o1750", 1000),
    ("training.max_steps", "+1000", 1000),
    ("training.max_steps", "1:40", REFUSED),
    ("training.max_steps", "1_000", REFUSED),
    ("training.max_steps", "1,000", REFUSED),
    ("training.max_steps", "1e-1", REFUSED),
    ("training.max_steps", "1000.5", REFUSED),
    ("training.max_steps", "true", REFUSED),
    ("training.max_steps", "on", REFUSED),
    ("training.max_steps", "'1000'", REFUSED),
    ("training.max_steps", ".inf", REFUSED),
    ("training.max_steps", "1e400", REFUSED),
    ("training.max_lr", "1e-4", 1e-4),
    ("training.max_lr", "1E-4", 1e-4),
    ("training.max_lr", "1", 1.0),
    ("training.max_lr", ".5", 0.5),
    ("training.max_lr", ".nan", REFUSED),
    ("training.max_lr", "no", REFUSED),
    ("model.n_head_list", "[8.0, 4, 2e0, 1]", [8, 4, 2, 1]),
    ("model.n_head_list", "8,4,2,1", [8, 4, 2, 1]),
    ("model.n_head_list", "'8, 4, 2, 1'", [8, 4, 2, 1]),
    ("model.n_head_list", "'[8, 4, 2, 1]'", [8, 4, 2, 1]),
    ("model.n_head_list", "8;4;2;1", REFUSED),
    ("logging.wandb", "off", "off"),
    ("logging.wandb", "no", "off"),
    ("logging.wandb", "OFF", "off"),
    ("logging.wandb", "false", "off"),
    ("logging.wandb", "on", REFUSED),
    ("logging.wandb", "0", REFUSED),
    ("device.tf32", "False", False),
    ("device.tf32", "FALSE", False),
    ("device.tf32", "no", REFUSED),
    ("device.tf32", "0", REFUSED),
    ("device.seed", "9007199254740993", 9007199254740993),
    ("device.seed", "0010", 10),
    ("data.tokenizer", "{type: bpe, vocab_size: 1e3}", {"type": "bpe", "vocab_size": 1000}),
    ("data.split", "[8e-1, 1e-1, .1]", [0.8, 0.1, 0.1]),
]  # fmt: skip
SHAPE = {
    "model.n_head_list": {"n_layer": 4},
    "training.batch_size": {"total_batch_size": 102400},
}  # what else such a configuration needs

# What is no YAML for us: the line, and a word of what would be right
ODD = [
    ("experiment_name: {{ name }}", 1, "quotes"),
    ("model:\n  n_layer: 2\n  ? [a, b]\n  : 1", 3, "text"),
    ("experiment_name: !!timestamp x", 1, "quotes"),
    ("training:\n  max_steps: !!int ''", 2, "tag"),
    ("42: x", 1, "quotes"),
    ("job:\n  metadata:\n    1: one", 3, "quotes"),
    ("model: {null: 1}", 1, "quotes"),
    ("model:\n  false: 1", 2, "quotes"),
    ("model:\n  1.5: 1", 2, "quotes"),
    ("model:\n  ~: 1", 2, "quotes"),
    ("experiment_name: @mine", 1, "quotes"),
    ("experiment_name: *mine", 1, "quotes"),
    ("experiment_name: run: 2", 1, "quotes"),
    ("experiment_name: !mine x", 1, "quotes"),
    ("experiment_name: `date`", 1, "quotes"),
    ("experiment_name: %s", 1, "quotes"),
    ("model:\n\tn_layer: 2", 2, "spaces"),
    ("training: {max_steps: 1}\nmodel: {}\ntraining: {max_steps: 2}", 3, "twice"),
    ("data: {source: !!binary eA==}", 1, "quotes"),
    ("a: &a [1]\nb: *a", 2, "aliases"),
    ("experiment_name: a\n---\nexperiment_name: b", 2, "document"),
    ("experiment_name: a\nmodel:\n  n_layer: " + "9" * 5000, 3, "large"),
    ("model: {n_head_list: 8,4,2,1}", 1, "brackets"),
]  # fmt: skip
TWICE = [
    '{"training": {"max_steps": 1}, "training": {"max_steps": 2}}',
    '{"training": {"max_steps": 1, "max_steps": 2}}',
    '{"job": {"metadata": {"a": "x", "\\u0061": "y"}}}',
]


def tree_of(key: str, value: Any) -> dict[str, Any]:
    section, name = key.split(".")
    return {section: {**SHAPE.get(key, {}), name: value}}


def stored(tree: dict[str, Any], key: str) -> Any:
    """The value of a key after validation; `REFUSED` if it is refused for that key."""
    section, name = key.split(".")
    try:
        config = parse_config(tree).config
    except InvalidConfig as error:
        return REFUSED if f"/{section}/{name}" in {problem.pointer for problem in error.problems} else error
    return config.model_dump(mode="json")[section][name]


def read(text: str) -> Any:
    try:
        return parse_yaml(text)
    except MalformedConfig:
        return None


@pytest.mark.parametrize(("key", "written", "value"), WRITTEN)
def test_a_value_is_what_yaml_says_in_a_file_and_on_the_command_line(
    tmp_path: Path, key: str, written: str, value: Any
) -> None:
    section, name = key.split(".")
    shape = "".join(f"  {other}: {number}\n" for other, number in SHAPE.get(key, {}).items())
    tree = read(f"{section}:\n{shape}  {name}: {written}")
    assert (REFUSED if tree is None else stored(tree, key)) == value
    settings_ = [f"{section}.{other}={number}" for other, number in SHAPE.get(key, {}).items()]
    (tmp_path / "empty.yaml").write_text("schema_version: 1")
    try:
        sent, kind = body_of(str(tmp_path / "empty.yaml"), [*settings_, f"{key}={written}"])
        found = stored(parse_body(sent, kind, JobRequest), key)
    except ModelCoreError:
        found = REFUSED
    assert found == value


@pytest.mark.parametrize(("key", "written", "value"), [row for row in WRITTEN if row[1][0] in "123456789"])
def test_a_number_is_the_same_in_json(key: str, written: str, value: Any) -> None:
    section, name = key.split(".")
    shape = "".join(f'"{other}": {number}, ' for other, number in SHAPE.get(key, {}).items())
    try:
        tree = parse_json(f'{{"{section}": {{{shape}"{name}": {written}}}}}')
    except MalformedBody:
        tree = None
    assert (REFUSED if tree is None else stored(tree, key)) == value or written == "8,4,2,1"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/jobs?limit=1e1", 200), ("/jobs?limit=10.0", 200), ("/jobs?limit=1.5", 422), ("/jobs?limit=0x10", 422),
        ("/datasets?limit=1E1", 200), ("/runs?limit=2e0", 200), ("/generate?run=tiny&n=1e0&max_new_tokens=2e1", 200),
        ("/generate?run=tiny&top_k=5e1&seed=1e3&temperature=1e0", 200), ("/generate?run=tiny&seed=1:40", 422),
        ("/generate?run=tiny&temperature=nan", 422), ("/queue?limit=2e1", 200),
    ],
)  # fmt: skip
def test_a_number_of_a_query_is_written_as_in_a_body(site: Any, address: str, status: int) -> None:
    site.make_run()
    site.add_host()
    assert site.http.get(address).status_code == status


def test_a_whole_number_of_a_request_may_have_an_exponent(site: Any) -> None:
    site.make_run()
    site.add_host()
    body = '{"run": "tiny", "max_new_tokens": 2e1, "n": 1.0, "seed": 1e3, "top_k": 5E1}'
    reply = site.http.post("/generate", content=body, headers={"Content-Type": JSON_TYPE})
    assert (reply.status_code, reply.json()["seed"]) == (200, 1000)
    job = site.submit("other", job={"priority": 2.0, "resources": {"gpus": 0.0}})
    patched = site.http.patch(job["links"]["self"], content='{"priority": 1e2}', headers={"Content-Type": JSON_TYPE})
    assert (job["priority"], patched.json()["priority"]) == (2, 100)
    made = site.http.post("/datasets", content='{"name": "new", "source": "stories", "seed": 1e3}',
                          headers={"Content-Type": JSON_TYPE})  # fmt: skip
    assert made.status_code == 202


@pytest.mark.parametrize(("text", "line", "advice"), ODD)
def test_odd_yaml_is_refused_with_line_and_advice_in_a_file(tmp_path: Path, text: str, line: int, advice: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(MalformedConfig, match=rf"line {line}, .*{advice}"):
        load_config(tmp_path / "odd.yaml")


@pytest.mark.parametrize("path", ["/jobs", "/configs/validate", "/datasets", "/runs/tiny/exports", "/generate"])
def test_odd_yaml_is_refused_with_its_line_in_every_body(site: Any, path: str) -> None:
    site.make_run()
    replies = [site.http.post(path, content=text, headers={"Content-Type": YAML_TYPE}) for text, _, _ in ODD]
    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == [(400, "malformed_body")] * len(ODD)
    assert all(f"line {line}," in reply.json()["detail"] for reply, (_, line, _) in zip(replies, ODD, strict=True))


@pytest.mark.parametrize("text", TWICE)
@pytest.mark.parametrize("kind", [YAML_TYPE, JSON_TYPE])
def test_a_key_that_occurs_twice_is_refused_in_json_as_in_yaml(site: Any, kind: str, text: str) -> None:
    reply = site.http.post("/jobs", content=text, headers={"Content-Type": kind})
    assert (reply.status_code, reply.json()["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("text", ['{"training": {"max_lr": 1e999}}', '{"a": ' * 200 + "1" + "}" * 200])
def test_json_without_bounds_is_refused(site: Any, text: str) -> None:
    reply = site.http.post("/jobs", content=text, headers={"Content-Type": JSON_TYPE})
    assert (reply.status_code, reply.json()["code"]) == (400, "malformed_body")


def test_a_run_of_an_older_version_reads_equal() -> None:
    run = Run(Path(__file__).parents[1] / "golden" / "data" / "exp" / "golden")
    text = (run.path / "config.yaml").read_text(encoding="utf-8")
    assert parse_config(parse_yaml(to_yaml(run.config()))).config == run.config()
    assert YAML(typ="safe", pure=True).load(text) == run.config().model_dump(mode="json", exclude_unset=True)


# --- whatever is written: refused, or stored as another reader of YAML 1.2 or JSON says ------------------------------

plain = st.sampled_from(
    [
        "0100",
        "1:40",
        "1e3",
        "0x10",
        "off",
        "1000.0",
        ".5",
        "null",
        "~",
        "''",
        "[1]",
        "{}",
        "1_0",
        "x",
        "2026-11-30",
    ]
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=8)
json_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
relaxed = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_back(site: Any, text: str, kind: str) -> Any:
    """Submit a job and look it up; None if it is refused."""
    reply = site.http.post("/jobs", content=text.encode(), headers={"Content-Type": kind})
    assert reply.status_code in {202, 400, 422}, reply.text
    if reply.status_code != 202:
        return None
    job = site.http.get(reply.json()["links"]["self"]).json()
    site.http.post(f"/jobs/{job['id']}/cancel")
    return job


@relaxed
@given(texts, plain, st.sampled_from(["3", "1e1", "07", "0x3", "2.0", "1:40", "on", "'3'", "null"]))
def test_what_a_job_keeps_is_what_another_reader_of_yaml_reads(site: Any, why: str, what: str, priority: str) -> None:
    metadata = f"{{why: {json.dumps(why)}, what: {what}}}"
    text = f"job: {{kind: prepare, priority: {priority}, metadata: {metadata}}}\ndata: {{dataset: new, source: pydoc}}"
    job = read_back(site, text, YAML_TYPE)
    expected = YAML(typ="safe", pure=True).load(text)["job"]
    found = expected["metadata"]["what"]
    kept = {"why": why} | ({} if found is None else {"what": found if isinstance(found, str) else what})
    assert job is None or (job["priority"], job["metadata"]) == (expected["priority"] or 0, kept)


@relaxed
@given(st.dictionaries(texts, texts, max_size=3), st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_what_a_job_keeps_is_what_json_says(site: Any, metadata: dict[str, str], priority: float) -> None:
    data = {"dataset": "new", "source": "pydoc"}
    body = {"job": {"kind": "prepare", "priority": priority, "metadata": metadata}, "data": data}
    jobs = [read_back(site, json.dumps(body), kind) for kind in (JSON_TYPE, YAML_TYPE)]
    assert all(job is None or (job["priority"], job["metadata"]) == (priority, metadata) for job in jobs)
    assert (jobs[0] is None) == (jobs[1] is None)


@relaxed
@given(st.dictionaries(st.sampled_from(["max_steps", "warmup_steps", "max_lr", "on_oom"]), json_values, max_size=3))
def test_a_section_in_json_is_stored_or_refused_at_its_keys(section: dict[str, Any]) -> None:
    try:
        found = parse_config(parse_json(json.dumps({"training": section}))).config.training.model_dump()
    except InvalidConfig as error:
        found, pointers = {}, [problem.pointer for problem in error.problems]
        assert pointers
    given_values = {key: value for key, value in section.items() if value is not None}
    assert not found or {key: found[key] for key in given_values} == given_values
