"""Datasets of an emulated hub: what is read, and the error for each refusal."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from model_core.storage.events import read_events
from model_core.storage.files import read_json
from tests.hub.datasets import CANARY, REPOSITORIES, TRAIN, fill
from tests.hub.emulator import Hub

COMMIT = REPOSITORIES["demo/public"].commit

# name: source, token, and what else is asked
READ = {
    "public": ("hub:demo/public", ""),
    "after the first": ("hub:demo/public", "", {"skip": 100}),
    "pinned": ("hub:demo/public", "", {"revision": COMMIT}),
    "gated": ("hub:demo/gated", CANARY),
    "padded": ("babylm", f" {CANARY}\n"),
    "cut": ("hub:demo/cut", ""),
    "rangeless": ("hub:demo/rangeless", ""),
    "shaky": ("hub:demo/shaky", ""),
    "no train": ("hub:demo/lines", ""),
    "one of two": ("hub:demo/two:two", ""),
    "converted": ("openwebtext", ""),
    "articles": ("wikitext", ""),
    "second article": ("wikitext", "", {"skip": 1}),
}
# name: source, token, what else is asked, code, words of the error, words of the hint
REFUSED = {
    "no login": ("babylm", "", {}, "hub_login_required", "needs a login", "datasets/BabyLM-community/babylm-eng; make"),
    "terms": ("babylm", "hf_new", {}, "hub_terms_not_accepted", "has not accepted", "accept the terms"),
    "pending": ("babylm", "hf_waits", {}, "hub_terms_not_accepted", "have not answered yet", "wait for approval"),
    "rejected": ("babylm", "hf_rejected", {}, "hub_terms_not_accepted", "have rejected", "take another source"),
    "bad": ("hub:demo/public", "hf_stranger", {}, "hub_bad_token", "the hub does not know it", "hf auth login"),
    "expired": ("babylm", "hf_old", {}, "hub_bad_token", "it has expired", "make a token"),
    "forbidden": ("hub:demo/public", "hf_narrow", {}, "hub_bad_token", "'demo/public': Token [HF_TOKEN] lacks", None),
    "two lines": ("hub:demo/public", f"{CANARY}\nb", {}, "hub_bad_token", "it holds a line end", "set HF_TOKEN"),
    "two words": ("hub:demo/public", f"{CANARY} b", {}, "hub_bad_token", "it holds white space", "set HF_TOKEN"),
    "umlaut": ("hub:demo/public", f"{CANARY}ä", {}, "hub_bad_token", "not ASCII", "set HF_TOKEN"),
    "unknown": ("hub:demo/nothing", CANARY, {}, "hub_not_found", "no dataset 'demo/nothing'", "compare the name"),
    "private": ("hub:demo/nothing", "", {}, "hub_not_found", "without a login", "if it is private, make a token"),
    "revision": ("hub:demo/public", "", {"revision": "v9"}, "hub_not_found", "no revision 'v9'", "/commits/main"),
    "which": ("hub:demo/two", "", {}, "invalid_config", "several configurations; there are: one, two", None),
    "three": ("hub:demo/two:three", "", {}, "invalid_config", "no configuration 'three'; there are: one, two", None),
    "column": ("hub:demo/public", "", {"column": "story"}, "invalid_data", "no column 'story'; there is: 'text'", None),
    "huge": ("hub:demo/huge", "", {}, "disk_full", "1000000000000000000 bytes are needed", None),
    "arrow": (
        "hub:demo/table",
        "",
        {},
        "invalid_data",
        "train.arrow, which cannot be read here; set data.revision",
        None,
    ),
    "program": ("hub:demo/program", "", {}, "invalid_data", "a program of its own, which cannot be read here", None),
    "bare": ("hub:demo/bare", "", {}, "invalid_data", "'demo/bare' cannot be read", None),
    "broken": ("hub:demo/broken", "", {}, "invalid_data", "demo/broken/data/train.jsonl, line 2: not JSON", None),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A hub, what a process was told that asked it every question, and all that the process said or wrote."""
    hub, home = Hub(), tmp_path_factory.mktemp("home")
    fill(hub)
    questions = [(source, token, *more) for source, token, *more in READ.values()]
    questions += [(source, token, more) for source, token, more, *_ in REFUSED.values()]
    trees = [{"source": source, "token": token, **dict(*more)} for source, token, *more in questions]
    process = subprocess.run(
        [sys.executable, "-m", "tests.hub.reader"], input=json.dumps(trees),
        env=hub.environment(home, HF_TOKEN="hf_unasked"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    hub.close()
    assert process.returncode == 0, process.stderr
    answers = dict(zip([*READ, *REFUSED], json.loads(process.stdout), strict=True))
    return hub, answers, process.stdout + process.stderr, home


def test_the_training_split_is_read_in_order_at_a_fixed_commit(asked):
    _, answers, _, _ = asked
    public = answers["public"]
    assert public["documents"] == answers["pinned"]["documents"] == TRAIN
    assert answers["after the first"]["documents"] == TRAIN[100:]
    assert public["revision"] == answers["pinned"]["revision"] == COMMIT
    facts = {"hub": "demo/public", "config": "default", "splits": ["train"], "asked_revision": None, "licence": "mit"}
    assert public["facts"] == facts
    assert public["text_bytes"] > 1000


@pytest.mark.parametrize("name", ["gated", "padded", "shaky"])
def test_the_same_documents_come_through_a_gate_and_a_hiccup(asked, name):
    assert asked[1][name]["documents"] == TRAIN


@pytest.mark.parametrize("name", ["cut", "rangeless"])
def test_a_transfer_that_is_cut_goes_on_where_it_was_or_from_the_beginning(asked, name):
    hub, answers, *_ = asked
    place = f"/demo/{name}/resolve/{REPOSITORIES[f'demo/{name}'].commit}/data/train.jsonl"
    transfers = [request for request in hub.requests if request.method == "GET" and request.path.endswith(place)]
    assert answers[name]["documents"] == [["One.", None], ["Two.", None]]
    assert [request.range for request in transfers] == [None, f"bytes={10 * 2**20}-"]
    assert [request.status for request in transfers] == [200, {"cut": 206, "rangeless": 200}[name]]


def test_white_space_around_a_token_is_left_out_and_reported(asked):
    assert (asked[1]["padded"]["advice"], asked[1]["gated"]["advice"]) == (["token_stripped"], [])


def test_other_shapes_of_datasets_are_read(asked):
    answers = asked[1]
    assert sorted(answers["no train"]["documents"]) == [["One.", None], ["Two.", None]]
    assert sorted(answers["no train"]["facts"]["splits"]) == ["test", "validation"]
    assert answers["one of two"]["documents"] == TRAIN[1:2]
    assert answers["converted"]["documents"] == TRAIN[:2]
    assert answers["converted"]["facts"]["asked_revision"] == "refs/convert/parquet"
    assert answers["converted"]["advice"] == ["partial_conversion"]


def test_lines_of_articles_are_joined_again(asked):
    articles = ["= Cats = \n A cat sat . \n = = Diet = = \n Fish .", "= Dogs = \n A dog ran ."]
    assert [text for text, _ in asked[1]["articles"]["documents"]] == articles
    assert [text for text, _ in asked[1]["second article"]["documents"]] == articles[1:]


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_has_its_code_and_the_steps_to_mend_it(asked, name):
    *_, code, said, hint = REFUSED[name]
    answer = asked[1][name]
    assert answer["code"] == code, answer
    assert said in answer["said"]
    assert (hint or "") in (answer["hint"] or "")


def test_a_token_is_sent_only_where_one_was_given(asked):
    public = [request for request in asked[0].requests if "/demo/cut" in request.path]
    gated = [request for request in asked[0].requests if "/demo/gated" in request.path]
    assert not any(request.has_token for request in public)
    assert all(request.has_token for request in gated)


def test_no_token_is_printed_or_kept(asked):
    _, _, said, home = asked
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert CANARY not in said
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def prepare(directory: Path, environment: dict[str, str], source: str = "babylm") -> "subprocess.Popen[str]":
    """A job that prepares a dataset, as a supervisor starts it."""
    record = directory / "jobs" / "1"
    record.mkdir(parents=True)
    config = {"data": {"source": source, "dataset": "baby", "tokenizer": {"type": "bpe", "vocab_size": 300}}}
    (record / "config.yaml").write_text(yaml.safe_dump({**config, "model": {"vocab_size": 300}}))
    options = ["--config", record / "config.yaml", "--data-root", directory, "--record", record, "--attempt", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "model_core.data.prepare", *map(str, options)],
        cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def watched(process: "subprocess.Popen[str]") -> set[str]:
    """Every command line of a process and its children until it ends."""
    seen: set[str] = set()
    while process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        seen |= {
            " ".join(Path(f"/proc/{one.pid}/cmdline").read_text().split("\0")) for one in family if one.is_running()
        }
        time.sleep(0.02)
    return seen


@pytest.mark.skipif(sys.platform != "linux", reason="command lines are read from /proc")
@pytest.mark.parametrize(("token", "code"), [(f"{CANARY}\n", None), (f"{CANARY}\nb", "hub_bad_token")])
def test_a_job_prepares_what_is_gated_and_its_token_appears_nowhere(hub, tmp_path, token, code):
    fill(hub)
    process = prepare(tmp_path, hub.environment(tmp_path / "home", HF_TOKEN=token))
    command_lines = watched(process)
    output, _ = process.communicate(timeout=60)
    outcome = read_json(tmp_path / "jobs" / "1" / "outcome.json")
    assert (outcome["error"] or {}).get("code") == code, output
    assert (tmp_path / "datasets" / "baby" / "manifest.json").exists() == (code is None)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert CANARY not in "".join([output, *command_lines])
    assert not [content for content in written if CANARY.encode() in content]


def without_a_hub(directory: Path, **environment: str) -> "subprocess.Popen[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    about = {"HF_HOME": str(directory / "home"), "HF_UPDATE_DOWNLOAD_COUNTS": "0", "PYTHONPATH": str(Path.cwd())}
    return prepare(directory, {**own, **about, **environment}, source="tinystories")


def error_of(process: "subprocess.Popen[str]", directory: Path) -> dict[str, str]:
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    (*_, end) = read_events(directory / "jobs" / "1" / "events.jsonl")
    return end["error"]


def test_an_unreachable_hub_is_distinguished_from_offline_mode(tmp_path):
    nobody, places = "http://127.0.0.1:9", (tmp_path / "gone", tmp_path / "offline")
    modes = ({}, {"HF_DATASETS_OFFLINE": "1"})
    processes = [without_a_hub(place, HF_ENDPOINT=nobody, **mode) for place, mode in zip(places, modes, strict=True)]
    gone, offline = map(error_of, processes, places)
    assert gone["code"] == offline["code"] == "hub_unreachable"
    assert "HF_HUB_OFFLINE" not in gone["hint"]
    assert "HF_HUB_OFFLINE" in offline["hint"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up_in_time(tmp_path, silent_server):
    began = time.monotonic()
    error = error_of(without_a_hub(tmp_path, HF_ENDPOINT=silent_server), tmp_path)
    assert error["code"] == "hub_unreachable"
    assert time.monotonic() - began < 40  # of which some seconds are the start of the process


@pytest.fixture
def silent_server():
    """Address of a server that takes connections and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
