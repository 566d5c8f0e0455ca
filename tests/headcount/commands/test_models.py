"""Commands about models."""

import json

import pytest

from model_core.schemas import GenerateRequest
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


GENERATED = {"prompt": "One", "choices": [{"index": 0, "text": " day"}, {"index": 1, "text": " cat"}]}


def test_every_parameter_of_generate_is_an_option(service, headcount) -> None:
    service.says("POST /generate", GENERATED)
    values = {
        "checkpoint": "final", "max_new_tokens": 7, "min_new_tokens": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.9,
        "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": -1.0, "frequency_penalty": 0.25, "seed": 5,
        "logprobs": 2, "timeout_s": 3.5,
    }  # fmt: skip
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    lists = ["--logit-bias", "11=-100", "--logit-bias", "13=2.5", "--stop", "a", "--stop", "b", "--stop-token-id", "4"]

    code, out, _ = headcount("generate", "mine", "One", *options, *lists, "--ignore-eos", "-n", "2")

    assert (code, out) == (0, "One day\n---\nOne cat\n")
    assert json.loads(service.bodies[-1]) == {
        "run": "mine", "prompt": "One", "n": 2, "ignore_eos": True, "logit_bias": {"11": -100.0, "13": 2.5},
        "stop": ["a", "b"], "stop_token_ids": [4], **values,
    }  # fmt: skip


def test_defaults_of_generate_are_those_of_the_service(service, headcount) -> None:
    service.says("POST /generate", GENERATED)

    assert headcount("generate", "mine")[0] == 0

    assert GenerateRequest.model_validate(json.loads(service.bodies[-1])) == GenerateRequest(run="mine")


@pytest.mark.parametrize("bias", ["11", "11=", "11=x", "11:3"])
def test_a_bias_is_an_id_and_a_number(headcount, bias: str) -> None:
    assert headcount("generate", "mine", "One", "--logit-bias", bias)[0] == 2
