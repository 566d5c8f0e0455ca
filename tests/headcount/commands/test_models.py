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
