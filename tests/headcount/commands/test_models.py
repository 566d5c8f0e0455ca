"""Commands about models."""

import json

from tests.headcount.commands.sample_responses import JOB, job

EXPORT = {"object": "export", "run": "mine", "name": "model_best-01234567", "size_bytes": 1234567}


def test_an_export_is_submitted_once_and_then_reported_as_ready(service, headcount) -> None:
    service.says("POST /runs/mine/exports", job(object="job", kind="export", run="mine", status="queued"), 202)
    assert headcount("export", "mine", "--checkpoint", "step=5")[:2] == (0, f"{JOB}  queued  run mine\n")
    assert json.loads(service.bodies[-1]) == {"checkpoint": "step=5"}
    assert headcount("export", "mine", "--licence", "mit")[0] == 0
    assert json.loads(service.bodies[-1]) == {"checkpoint": "best", "licence": "mit"}
    service.says("POST /runs/other/exports", {**EXPORT, "run": "other"})
    assert headcount("export", "other")[:2] == (0, "exports/other/model_best-01234567  1,234,567 bytes\n")


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
