"""Requests are validated alike from a query string, a JSON body and Python."""

import json

import pytest
from pydantic import ValidationError

from model_core.schemas import (
    AttentionRequest,
    Choice,
    GenerateRequest,
    InferenceRequest,
    PromptResult,
    SamplingParams,
    text_id,
)


def test_query_strings_count_as_numbers() -> None:
    request = GenerateRequest.model_validate({"run": "a", "max_new_tokens": "7", "temperature": "0", "stop": "\n"})

    assert (request.max_new_tokens, request.temperature, request.stop) == (7, 0.0, ("\n",))


def test_defaults_are_those_of_the_interface() -> None:
    assert GenerateRequest(run="a").model_dump() == {
        "run": "a", "checkpoint": "best", "prompt": "", "max_new_tokens": 100, "temperature": 1.0, "top_k": 50,
        "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "logit_bias": {}, "min_new_tokens": 0, "ignore_eos": False, "seed": None, "n": 1, "stop": (),
        "stop_token_ids": (), "stream": False, "logprobs": None, "timeout_s": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "../x"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**40),
        ("top_p", 0),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("n", 0),
        ("stop", [""]),
        ("prompt", "\ud800"),
        ("temprature", 1.0),
        ("min_p", 1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 10.1),
        ("presence_penalty", 3),
        ("frequency_penalty", -2.1),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": float("nan")}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1.5": 1}),
        ("logit_bias", {"1": 1, 1: 2}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("logit_bias", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1] * 17),
        ("min_new_tokens", -1),
        ("timeout_s", 0),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate({"run": "a", key: value})

    assert caught.value.errors()[0]["loc"][0] == key


def test_the_least_number_of_tokens_is_at_most_the_largest() -> None:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest(run="a", max_new_tokens=5, min_new_tokens=6)

    assert caught.value.errors()[0]["ctx"]["field"] == "min_new_tokens"


def test_ids_of_biases_are_texts_or_numbers() -> None:
    assert SamplingParams.model_validate({"logit_bias": {"7": 1, 8: -2.5}}).logit_bias == {7: 1.0, 8: -2.5}
    sent = SamplingParams(logit_bias={7: 1.0}, stop_token_ids=(3,)).model_dump_json()
    assert SamplingParams.model_validate_json(sent, strict=True).logit_bias == {7: 1.0}


def test_prompts_of_an_inference_request_are_texts_or_ids() -> None:
    request = InferenceRequest.model_validate({"run": "a", "checkpoint": "b.pt", "prompts": ["x", [1, 2]]})

    assert request.prompts == ("x", (1, 2))
    assert InferenceRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": []},
        {"prompts": [[]]},
        {"prompts": ["x"] * 65},
        {"prompts": [[-1]]},
        {"prompts": [[1.5]]},
        {"prompts": [[True]]},
        {"max_new_tokens": 0},
        {"client": "x" * 201},
    ],
)
def test_a_wrong_inference_request_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        InferenceRequest.model_validate({"run": "a", "checkpoint": "b.pt", "prompts": ["x"], **changes})


def test_a_seed_is_drawn_once_and_kept() -> None:
    drawn = SamplingParams().seeded()

    assert drawn.seed is not None
    assert drawn.seeded() == drawn
    assert SamplingParams(seed=3).seeded().seed == 3


def test_logprobs_appear_only_when_asked_for() -> None:
    choice = Choice(index=0, text="a", tokens=(1,), finish_reason="stop")

    assert json.loads(choice.model_dump_json()) == {"index": 0, "text": "a", "tokens": [1], "finish_reason": "stop"}
    assert Choice.model_validate_json(choice.model_dump_json()) == choice
    assert json.loads(PromptResult(tokens=(1,)).model_dump_json()) == {"tokens": [1], "pieces": []}
    assert PromptResult(tokens=(1,), logprobs=(None,)).model_dump()["logprobs"] == (None,)


def test_an_attention_id_is_a_number_or_the_id_of_a_text() -> None:
    assert AttentionRequest.model_validate({"run": "a", "id": 3}).id == "3"
    assert AttentionRequest(run="a", id=text_id("hello"), text="hello").id.startswith("t_")


@pytest.mark.parametrize("wrong", ["..", "01", "-1", "t_xyz", "", "٣"])
def test_an_id_that_could_leave_its_directory_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        AttentionRequest(run="a", id=wrong)
