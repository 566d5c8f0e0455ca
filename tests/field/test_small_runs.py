"""A training that ends well is a success, however small its data and however little it keeps."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from headcount import cli
from model_core.hf.__main__ import main as exchange
from model_core.storage.events import read_events
from model_core.storage.files import read_json
from model_core.storage.run import Run
from tests.field.training import run_of, train, warnings_of, write_config, write_text
from tests.service.conftest import TREE, Site, _shared_site, site

__all__ = ["_shared_site", "site"]  # fixtures

KEEP_NOTHING = {"save_best": False, "save_final": False}
NO_HELD_OUT = {"split": [1.0, 0.0, 0.0]}  # neither validation nor test documents

# What they write, and the warnings of a run that succeeds: codes without repetition.
RUNS: dict[str, tuple[dict[str, dict[str, Any]], set[str]]] = {
    "no best": ({"checkpoint": {"save_best": False}}, {"checkpoint_fallback"}),
    "no final": ({"checkpoint": {"save_final": False}}, set()),
    "neither best nor final": ({"checkpoint": KEEP_NOTHING}, {"checkpoint_fallback"}),
    "no held-out text": (
        {"data": NO_HELD_OUT},
        {"no_val_loss", "no_test_loss", "few_examples", "checkpoint_fallback", "heads_skipped"},
    ),
    "one step": ({"training": {"max_steps": 1}}, set()),
    "all of these": (
        {"data": NO_HELD_OUT, "checkpoint": KEEP_NOTHING, "training": {"max_steps": 1}},
        {"no_val_loss", "no_test_loss", "few_examples", "checkpoint_fallback", "heads_skipped"},
    ),
    "validation after more steps than there are": ({"evaluation": {"val_loss_every": 1000}}, set()),
    "more examples than there are": ({"testing": {"num_test_samples": 1000}}, {"few_examples"}),
    "the latest": ({"testing": {"checkpoint_path": "latest"}}, set()),
    "a step that was never saved": ({"testing": {"checkpoint_path": "step=3"}}, {"checkpoint_fallback"}),
    "a step that was pruned": (
        {
            "testing": {"checkpoint_path": "step=1"},
            "evaluation": {"checkpoint_every": 1, "max_checkpoints_to_keep": 1},
        },
        {"checkpoint_fallback"},
    ),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    write_text(root, 110)
    return root


@pytest.fixture
def root(texts: Path, tmp_path: Path) -> Path:
    shutil.copy(texts / "text.txt", tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", RUNS)
def test_a_training_that_ends_well_is_tested_and_succeeds(root: Path, what: str) -> None:
    sections, codes = RUNS[what]
    write_config(root, **{**sections, "execution": {"test": True}})
    assert train(root) == 0
    outcome = run_of(root).outcome()
    assert (outcome["outcome"], outcome["error"]) == ("succeeded", None)
    assert set(warnings_of(root)) == codes
    assert (outcome["test_loss"] is None) == ("no_test_loss" in codes)


def test_splits_too_short_for_one_row_are_no_failure(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"word {number}" for number in range(100)))
    write_config(tmp_path, data={"split": [0.98, 0.01, 0.01]}, execution={"test": True})
    assert train(tmp_path) == 0
    assert set(warnings_of(tmp_path)) == {"no_val_loss", "checkpoint_fallback", "heads_skipped"}


def test_a_test_that_fails_does_not_undo_the_training(root: Path) -> None:
    write_config(root)
    assert train(root, "--run", "first") == 0
    examples = root / "datasets" / "text" / "test_examples.json"
    examples.write_bytes(b"x" * examples.stat().st_size)
    write_config(root, execution={"test": True})
    assert (train(root), warnings_of(root)) == (0, ["test_failed"])
    outcome = run_of(root).outcome()
    assert (outcome["outcome"], outcome["error"], outcome["test_loss"]) == ("succeeded", None, None)
    write_config(root, execution={"train": False, "test": True})
    assert train(root) == 2  # a test alone


def steps_kept(root: Path, **sections: dict[str, Any]) -> Run:
    """A run without a best checkpoint."""
    write_config(root, **{"checkpoint": {"save_best": False}, **sections})
    assert train(root) == 0
    return run_of(root)


def test_a_test_by_hand_takes_the_newest_weights_and_says_so(root: Path) -> None:
    steps_kept(root)
    write_config(root, execution={"train": False, "test": True})
    assert train(root) == 0
    events = list(read_events(root / "attention_outputs" / "tiny" / "events.jsonl"))
    assert [event["code"] for event in events if event["type"] == "warning"] == ["checkpoint_fallback"]
    (start,) = [event for event in events if event["type"] == "start"]
    assert (start["checkpoint"], start["step"]) == ("model_final.pt", 4)
    assert read_json(root / "attention_outputs" / "tiny" / "outcome.json")["outcome"] == "succeeded"


def test_an_export_by_hand_takes_the_newest_weights_and_says_so(root: Path, capsys: Any) -> None:
    steps_kept(root, checkpoint={"save_best": False, "save_final": False})
    assert exchange(["export", "--run", "tiny", "--data-root", str(root), "--out", str(root / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("model_latest.pt ")
    assert "checkpoint_fallback" in said.err


def test_a_new_run_from_a_best_that_is_not_there_takes_the_newest_weights(root: Path) -> None:
    steps_kept(root)
    write_config(root, checkpoint={"load_checkpoint": "tiny/best"})
    assert train(root, "--run", "next") == 0
    assert warnings_of(root, "next") == ["checkpoint_fallback", "weights_only"]


# --- over HTTP -------------------------------------------------------------------------------------------------------


def publish(run: Run, file: str, step: int, *, full: bool) -> None:
    facts = {"attempt": 1, "step": step, "full": full, "loss": 1.0, "val_loss": None}
    run.publish(file, lambda opened: opened.write(file.encode()), **facts)


@pytest.fixture
def without_best(site: Site) -> Site:
    """A run that has a full state of step 2, and its final parameters of step 3."""
    run = site.make_run(checkpoint=None)
    publish(run, "model_00002.pt", 2, full=True)
    publish(run, "model_final.pt", 3, full=False)
    site.add_host()
    return site


FORMS = [
    ("/generate?run=tiny&seed=1&checkpoint=CHECKPOINT", "application/json"),
    ("/generate?run=tiny&seed=1&checkpoint=CHECKPOINT", "text/plain"),
    ("/attention/tiny/0?checkpoint=CHECKPOINT", "application/json"),
    ("/attention/tiny/0?checkpoint=CHECKPOINT", "image/png"),
    ("/attention/tiny/0/layer00.png?checkpoint=CHECKPOINT", "image/png"),
    ("/runs/tiny/checkpoints/CHECKPOINT", "application/json"),
    ("/runs/tiny/checkpoints/CHECKPOINT/content", "*/*"),
]


@pytest.mark.parametrize(("address", "accept"), FORMS)
def test_best_is_the_newest_weights_where_there_is_none(without_best: Site, address: str, accept: str) -> None:
    for checkpoint, code in (("best", "checkpoint_fallback"), ("latest", None), ("final", None), ("step=2", None)):
        reply = without_best.http.get(address.replace("CHECKPOINT", checkpoint), headers={"Accept": accept})
        assert reply.status_code == 200, reply.text
        assert reply.headers.get("headcount-warning", "").partition(":")[0] == (code or "")


@pytest.mark.parametrize("address", ["/generate?run=tiny", "/attention/tiny/0"])
def test_json_has_the_warning_too(without_best: Site, address: str) -> None:
    reply = without_best.http.get(address, headers={"Accept": "application/json"}).json()
    assert [warning["code"] for warning in reply["warnings"]] == ["checkpoint_fallback"]


def test_a_stream_ends_with_the_warning(without_best: Site) -> None:
    reply = without_best.http.get("/generate?run=tiny&stream=true")
    assert '"code": "checkpoint_fallback"' in reply.text.partition("event: end")[2]
    assert reply.headers["headcount-warning"].startswith("checkpoint_fallback: ")


@pytest.mark.parametrize(
    ("command", "is_warned"),
    [
        (["generate", "tiny"], True),
        (["generate", "tiny", "--stream"], True),
        (["generate", "tiny", "--checkpoint", "latest"], False),
        (["attention", "tiny", "0", "--out", "pictures"], True),
        (["export", "tiny"], True),
        (["export", "tiny", "--checkpoint", "final"], False),
    ],
)
def test_commands_warn_on_standard_error(
    without_best: Site, command: list[str], is_warned: bool, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADCOUNT_URL", without_best.url)
    assert cli.run(command) == 0
    said = capsys.readouterr()
    assert ("model_final.pt" in said.err, "model_final.pt" in said.out) == (is_warned, False)


def test_latest_is_the_newest_state_whatever_its_file(without_best: Site) -> None:
    def named(reference: str) -> str:
        return str(without_best.http.get(f"/runs/tiny/checkpoints/{reference}").json()["file"])

    assert [named("best"), named("latest")] == ["model_final.pt", "model_00002.pt"]
    publish(Run(without_best.layout.run("tiny")), "model_latest.pt", 1, full=True)
    assert named("latest") == "model_00002.pt"
    publish(Run(without_best.layout.run("tiny")), "model_latest.pt", 4, full=True)
    assert [named("best"), named("latest")] == ["model_latest.pt"] * 2


def test_what_changes_a_file_takes_no_other(without_best: Site) -> None:
    ask, best = without_best.http.request, "/runs/tiny/checkpoints/best"
    replies = [ask("DELETE", best), ask("PUT", f"{best}/pin"), ask("DELETE", f"{best}/pin")]
    assert [reply.json()["code"] for reply in replies] == ["checkpoint_not_found"] * 3


def test_jobs_that_read_the_best_say_what_they_read_instead(without_best: Site) -> None:
    tested = {"experiment_name": "tiny", "execution": {"train": False, "test": True}, "data": TREE["data"]}
    replies = [
        without_best.http.post("/jobs", json=tested),
        without_best.http.post("/runs/tiny/exports"),
    ]
    assert [reply.status_code for reply in replies] == [202, 202], [reply.text for reply in replies]
    assert [[warning["code"] for warning in reply.json()["warnings"]] for reply in replies] == [
        ["checkpoint_fallback"]
    ] * 2


def test_the_combination_without_a_best_is_no_error_at_submit(site: Site) -> None:
    sections = {"checkpoint": KEEP_NOTHING, "execution": {"test": True}}
    reply = site.http.post("/jobs", json={**TREE, **sections})
    assert reply.status_code == 202, reply.text
