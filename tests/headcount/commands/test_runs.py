"""Commands about runs: import and deletion."""

import json
import shutil

import pytest

from tests.headcount.commands.sample_responses import JOB, job

POINTER = "version https://git-lfs.github.com/spec/v1\n"

DELETION = {"object": "run_deletion", "run": "mine", "size_bytes": 6000, "run_bytes": 3000, "attention_bytes": 2000,
            "export_bytes": 1000, "checkpoints": ["model_best.pt"], "warnings": []}  # fmt: skip


def test_a_run_is_deleted_and_its_bytes_are_told(service, headcount) -> None:
    service.says("DELETE /runs/mine", DELETION)
    code, out, _ = headcount("delete-run", "mine")
    assert (code, "6,000 bytes" in out) == (0, True)
    assert service.asked == ["DELETE /runs/mine?dry_run=true", "DELETE /runs/mine"]


def test_a_dry_run_deletes_nothing_and_tells_what_stands_against_it(service, headcount) -> None:
    busy = {"code": "run_busy", "detail": "run 'mine' is used by job_1"}
    service.says("DELETE /runs/mine", {**DELETION, "warnings": [busy]})
    code, out, err = headcount("delete-run", "mine", "--dry-run")
    assert (code, "6,000" in out, "job_1" in err) == (0, True, True)
    assert json.loads(headcount("delete-run", "mine", "--dry-run", "--json")[1])["deleted"] is False
    assert set(service.asked) == {"DELETE /runs/mine?dry_run=true"}


@pytest.fixture
def folder(tmp_path):
    """What `git clone` of a model leaves."""
    place = tmp_path / "my gpt2"
    place.mkdir()
    files = (
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "vocab.json",
        "merges.txt",
        "tf_model.h5",
        "README.md",
    )
    for name in files:
        (place / name).write_text(f"text of {name}")
    return place


@pytest.fixture
def asked(service):
    service.says("POST /runs", job(object="job", kind="import", run="mine", status="queued"), 202)
    return service


def test_a_folder_of_this_machine_is_sent_without_what_nobody_reads(asked, headcount, folder) -> None:
    (folder / "tf_model.h5").write_text(POINTER)
    assert headcount("import", str(folder), "--run", "mine")[:2] == (0, f"{JOB}  queued  run mine\n")
    sent = asked.bodies[-1].decode()
    names = ("config.json", "merges.txt", "model.safetensors", "vocab.json")
    assert [f'filename="{name}"' in sent for name in names] == [True] * 4
    assert 'name="name"\r\n\r\nmine' in sent
    assert not any(name in sent for name in ("pytorch_model.bin", "tf_model.h5", "README.md"))


def test_a_run_is_named_like_its_folder_or_archive(asked, headcount, folder) -> None:
    headcount("import", str(folder))
    assert b'name="name"\r\n\r\nmy-gpt2\r' in asked.bodies[-1]
    archive = shutil.make_archive(str(folder), "gztar", folder)
    headcount("import", archive)
    assert b'name="name"\r\n\r\nmy-gpt2\r' in asked.bodies[-1]
    assert b'filename="my gpt2.tar.gz"' in asked.bodies[-1]


def test_a_model_that_lies_with_the_service_is_named(asked, headcount) -> None:
    assert headcount("import", "file:uploads/gpt2", "--run", "mine", "--json")[0] == 0
    assert json.loads(asked.bodies[-1]) == {"name": "mine", "source": "file:uploads/gpt2"}


def test_what_is_no_model_is_refused_before_anything_is_sent(service, headcount, folder, tmp_path) -> None:
    (folder / "model.safetensors").write_text(POINTER)
    (folder / "pytorch_model.bin").unlink()
    (tmp_path / "empty").mkdir()
    for path, named in ((folder, "Git LFS"), (tmp_path / "empty", "config.json"), (tmp_path / "nowhere", "nowhere")):
        code, out, err = headcount("import", str(path), "--run", "mine")
        assert (code, out, named in err, err.count("\n")) == (2, "", True, 1)
    assert service.asked == []


MODEL = {"checkpoint": "model_best.pt", "step": 200, "n_head": [2, 1], "parameters": 1234, "sha256": "0" * 64}
PAIR = {"a": [0, 0], "b": [0, 1], "overlap": 0.9, "distance": 0.1, "ratio": 0.2, "mutual": True}
COMPARISON = {
    "object": "comparison", "runs": ["a", "b", "c"], "models": [{**MODEL, "run": name} for name in "abc"],
    "differences": [{"key": "model.n_head_list", "values": [[2, 1], [1, 2], None]}], "equal": 71,
    "groups": [{"runs": ["a"], "val_loss": {"mean": 1.5, "sd": None, "n": 1}}],
    "curves": {"x": "step", "series": {}, "common": {"x": 200, "values": {"val_loss": [1.5, 1.25, "nan"]}}},
    "heads": [
        {"runs": ["a", "b"], "pairs": [{**PAIR, "similar": True}, {**PAIR, "similar": None}], "reason": None},
        {"runs": ["a", "c"], "pairs": None, "reason": "tokenizers_differ"},
    ],
    "text": {"example": "0", "tokens": 40, "scale": [0, 0.5], "reason": None},
}  # fmt: skip


def test_a_comparison_tells_losses_differences_and_heads_found_again(service, headcount) -> None:
    service.says("GET /compare", COMPARISON)
    code, out, _ = headcount("compare", "a", "b", "c", "--checkpoints", "best,final,best", "--example", "0")
    assert code == 0
    assert service.asked == ["GET /compare?runs=a%2Cb%2Cc&checkpoints=best%2Cfinal%2Cbest&x=step&example=0"]
    for told in ("1.25", "nan", "model.n_head_list", "[1, 2]", "71", "1 of 2", "0.0=0.1", "tokenizers_differ", "0.5"):
        assert told in out
    assert json.loads(headcount("compare", "a", "b", "--json")[1]) == COMPARISON


@pytest.mark.parametrize(
    ("other", "similar", "is_said"),
    [("b", [False, False, True, None], True), ("b", [True, False, None, None], False), ("a", [False, False], False)],
    ids=["seeds", "half", "one run"],
)
def test_heads_that_are_mostly_not_found_again_are_said_to_be_usual(
    service, headcount, other: str, similar: list, is_said: bool
) -> None:
    pairs = [{**PAIR, "similar": found} for found in similar]
    service.says("GET /compare", {**COMPARISON, "heads": [{"runs": ["a", other], "pairs": pairs, "reason": None}]})
    code, out, _ = headcount("compare", "a", "b")
    assert (code, "usual" in out) == (0, is_said)


def test_a_part_of_a_comparison_is_told_alone(service, headcount) -> None:
    service.says("GET /compare", {**COMPARISON, "curves": None, "heads": None, "text": None, "differences": []})
    code, out, _ = headcount("compare", "a", "b", "c", "--view", "curves")
    assert (code, "found again" in out, "1,234" in out) == (0, False, True)
