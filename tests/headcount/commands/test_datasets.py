"""Commands about datasets, and a training that waits for one."""

import json

import pytest

from tests.headcount.commands.sample_responses import JOB, OTHER, job, status, step, stream

PREPARATION = {"id": OTHER, "kind": "prepare", "run": None, "dataset": "tales", "object": "job"}
DATASET = {"object": "dataset", "name": "tales", "state": "ready", "job": OTHER, "error": None, "source": "stories",
           "documents": 20000, "tokens": 3000000, "reading": None}  # fmt: skip


def preparing(done: int, **facts):
    progress = {"step": None, "done": done, "of": 20000, "unit": "documents", "eta_s": 12.0}
    return job(**PREPARATION, progress=progress, **facts)


def test_a_source_is_prepared_under_its_own_name(service, headcount) -> None:
    service.says("POST /datasets", preparing(0, status="queued"), 202)
    code, out, _ = headcount("prepare", "stories", "--tokenizer", "bpe:1024", "--seed", "7")
    assert (code, out) == (0, f"{OTHER}  queued  dataset tales\n")
    body = json.loads(service.bodies[-1])
    assert body == {"name": "stories", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 1024}, "seed": 7}


def test_a_dataset_that_exists_is_reported_as_ready(service, headcount) -> None:
    service.says("POST /datasets", DATASET)
    assert headcount("prepare", "hub:own/corpus:small", "--name", "tales")[:2] == (
        0,
        "tales  ready  3,000,000 tokens\n",
    )


def test_files_of_this_machine_are_sent(service, headcount, tmp_path) -> None:
    for name in ("b.txt", "a.jsonl", "notes.log"):
        (tmp_path / name).write_text(f"text of {name}")
    service.says("POST /datasets", preparing(0, status="queued"), 202)
    assert headcount("prepare", str(tmp_path), "--name", "mine")[0] == 0
    sent = service.bodies[-1].decode()
    assert sent.index("text of a.jsonl") < sent.index("text of b.txt")
    assert "notes.log" not in sent
    (tmp_path / "empty").mkdir()
    code, _, err = headcount("prepare", str(tmp_path / "empty"))
    assert (code, str(tmp_path / "empty") in err) == (2, True)


def test_datasets_are_listed_with_why_one_failed(service, headcount) -> None:
    failed = {**DATASET, "name": "other", "state": "failed", "error": {"detail": "accept the terms"}, "tokens": None}
    service.says("GET /datasets", {"data": [DATASET, failed], "has_more": False})
    _, out, _ = headcount("datasets")
    assert "3,000,000" in out
    assert out.endswith("\n  accept the terms\n")
    assert json.loads(headcount("datasets", "--json")[1])["data"][0] == DATASET


def test_a_preparation_is_followed_to_its_end(service, headcount) -> None:
    told = {"seq": 1, "time": "2026-01-01T00:00:01Z", "attempt": 1, "done": 500, "of": 20000, "unit": "documents"}
    made = {"seq": 2, "time": "2026-01-01T00:00:02Z", "attempt": 1, "dataset": "tales",
            "reading": {"read_as": "paragraph", "documents": 20000, "shortest": 1, "median": 80, "longest": 2000,
                        "first": ["One [day]", "Another"]}}  # fmt: skip
    service.says("POST /datasets", preparing(0, status="queued"), 202)
    events = stream(status("running"), ("progress", 1, told), ("prepared", 2, made), status("succeeded"))
    service.says(f"GET /jobs/{OTHER}/events", events)
    code, out, _ = headcount("prepare", "stories", "--follow")
    assert code == 0
    assert "documents 500/20,000" in out
    assert "dataset tales is ready" in out
    assert "shortest 1, median 80, longest 2,000" in out
    assert '"One [day]"' in out


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_training_is_followed_through_what_it_waits_for(service, headcount, tmp_path, end) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("experiment_name: one\n")
    waits = job(status="queued", waiting_for=[OTHER], dataset="tales")
    service.says("POST /jobs", waits, 202)
    service.says(f"GET /jobs/{OTHER}", preparing(500))
    service.says(f"GET /jobs/{JOB}", job(status="queued", dataset="tales"))
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), step(1), status(end)))
    code, out, _ = headcount("submit", str(file), "--follow")
    assert code == {"succeeded": 0, "failed": 1}[end]
    assert f"waits for {OTHER} (prepare, dataset tales), which is running  documents 500/20,000  ETA 0:00:12" in out


def test_a_preparation_is_listed_and_shown_by_its_dataset(service, headcount) -> None:
    shown = preparing(500, attempts=[], links={})
    service.says("GET /jobs", {"data": [shown], "has_more": False})
    service.says(f"GET /jobs/{OTHER}", shown)
    _, listed, _ = headcount("jobs")
    _, card, _ = headcount("job", OTHER)
    for said in (listed, card):
        assert "tales" in said
        assert "500/20,000 documents" in said
