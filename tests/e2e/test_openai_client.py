"""OpenAI's own client against an API and an inference process: two applications on sockets, and a real model."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from service.app import create_app
from service.settings import ServiceSettings
from tests.polling import eventually
from tests.service.fake_host import Served
from worker.inference import app as inference
from worker.inference.model_cache import ModelCache
from worker.jobs.redis_client import Registry, connect
from worker.jobs.settings import InferenceSettings

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BLOCK = 64
SEPARATOR = "\u2028"
LONG = {"prompt": "a", "max_tokens": 60, "n": 200, "extra_body": {"ignore_eos": True}}  # takes about a second
TREE = {
    "experiment_name": "tiny",
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": [4, 2], "vocab_size": 320, "block_size": BLOCK},
    "training": {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "max_steps": 3, "warmup_steps": 1},
    "data": {"tokenizer": {"type": "bpe", "vocab_size": 300}},
}


class Deployment:
    """An API and an inference process with one run, of which two checkpoints have different parameters."""

    def __init__(self, data: Path, redis_url: str) -> None:
        layout = Layout.under(data)
        self.tokenizer = train_bpe([f"One day a little cat saw a red ball.{SEPARATOR * 9} 猫 🐈"] * 3, 300)
        run = Run.create(layout.run("tiny"), parse_config(TREE).config)
        Run.create(layout.run("new"), parse_config(TREE | {"experiment_name": "new"}).config)
        self.steps = {"model_best.pt": 300, "model_00250.pt": 250}
        for file, step in self.steps.items():
            state = parameters_state(_model(run, seed=step), run.config(), self.tokenizer, step)
            run.publish(file, writer(state), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)
        self._redis = connect(redis_url, for_api=False)
        self.registry = Registry(self._redis)
        self._models = ModelCache(layout, device="cpu", settings=InferenceSettings(weights="fp32"))
        self._inference = Served(inference.create_app(self._models))
        settings = ServiceSettings(data=data, redis_url=redis_url)
        narrow = settings.model_copy(update={"max_concurrent": 1})
        self._apis = [Served(create_app(settings)), Served(create_app(narrow))]
        self.url, self.narrow_url = (f"{api.url}/v1" for api in self._apis)
        self.announce()

    def announce(self, ttl_s: int = 3600) -> None:
        self.registry.register("inference", "one", {"url": self._inference.url}, ttl_s)

    @property
    def open_requests(self) -> int:
        found: int = httpx.get(f"{self._inference.url}/healthz").json()["open_requests"]
        return found

    def close(self) -> None:
        for api in self._apis:
            api.stop()
        self._inference.stop()
        self._redis.connection_pool.disconnect()


def _model(run: Run, seed: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(run.config().model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def deployment(start_redis: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("openai") / "data", start_redis().url)
    yield deployment
    deployment.close()


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Iterator[OpenAI]:
    with OpenAI(base_url=deployment.url, api_key="none", max_retries=0) as client:
        yield client


def complete(client: OpenAI, **changed: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "One day", "seed": 1, **changed})


def texts(done: Any) -> list[str]:
    return [choice.text for choice in done.choices]


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    found = client.models.retrieve("tiny:step=250")
    assert (found.id, found.owned_by, found.step, found.max_model_len) == ("tiny:step=250", "headcount", 250, BLOCK)


def test_a_checkpoint_answers_under_its_own_id(client: OpenAI) -> None:
    best, older = complete(client), complete(client, model="tiny:step=250")
    assert (best.model, older.model) == ("tiny", "tiny:step=250")
    assert texts(best) == texts(complete(client, model="tiny:best")) != texts(older)
    assert best.system_fingerprint != older.system_fingerprint


def test_text_lists_and_ids_are_the_same_prompts(deployment: Deployment, client: OpenAI) -> None:
    ids = deployment.tokenizer.encode("One day")
    one = texts(complete(client))
    assert texts(complete(client, prompt=["One day"])) == texts(complete(client, prompt=ids)) == one
    two = complete(client, prompt=[ids, deployment.tokenizer.encode("A cat")], n=2)
    assert texts(two)[:1] == one
    assert texts(two)[2:] == texts(complete(client, prompt="A cat", n=2))
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert texts(complete(client, prompt=None)) == texts(complete(client, prompt=""))


def test_the_usage_counts_every_prompt_and_choice(deployment: Deployment, client: OpenAI) -> None:
    prompts = [deployment.tokenizer.encode("One day"), deployment.tokenizer.encode("A cat")]
    usage = complete(client, prompt=prompts, n=3, max_tokens=5, extra_body={"ignore_eos": True}).usage
    read = sum(map(len, prompts))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (read, 30, read + 30)
    assert usage.prompt_tokens_details.cached_tokens == 0  # no prompt has a chunk of 64 tokens


def test_an_echo_has_the_logprobs_of_the_prompt_too(client: OpenAI) -> None:
    done = complete(client, prompt="One 猫 day", n=3, logprobs=2, echo=True, max_tokens=5)
    plain = complete(client, prompt="One 猫 day", n=3, logprobs=2, max_tokens=5)
    assert texts(done) == ["One 猫 day" + text for text in texts(plain)]
    for choice, alone in zip(done.choices, plain.choices, strict=True):
        scored, length = choice.logprobs, len(choice.logprobs.tokens) - len(alone.logprobs.tokens)
        assert (scored.token_logprobs[0], scored.top_logprobs[0]) == (None, None)
        assert all(value <= 0 for value in scored.token_logprobs[1:])
        assert scored.tokens[length:] == alone.logprobs.tokens
        assert scored.token_logprobs[length:] == alone.logprobs.token_logprobs
        assert [offset - 9 for offset in scored.text_offset[length:]] == alone.logprobs.text_offset
        tops = zip(scored.tokens[1:], scored.token_logprobs[1:], scored.top_logprobs[1:], strict=True)
        assert all(top[token] == value and len(top) in {2, 3} for token, value, top in tops)


def test_a_prompt_is_scored_without_new_tokens(client: OpenAI) -> None:
    scored = complete(client, max_tokens=0, echo=True, logprobs=1)
    longer = complete(client, max_tokens=1, echo=True, logprobs=1)
    assert (texts(scored), scored.usage.completion_tokens) == (["One day"], 0)
    assert longer.choices[0].logprobs.token_logprobs[:-1] == scored.choices[0].logprobs.token_logprobs


def test_each_prompt_has_one_more_logprob_for_one_new_token_even_where_it_ends_the_text(
    deployment: Deployment, client: OpenAI
) -> None:
    ids = deployment.tokenizer.encode("One day")
    asked = {"prompt": [ids, ids[:2]], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    for bias in ({}, {str(deployment.tokenizer.eot): 100}):
        scored = [choice.logprobs for choice in complete(client, **asked, logit_bias=bias).choices]
        assert [len(each.token_logprobs) for each in scored] == [len(ids) + 1, 3]
        assert [len(each.text_offset) for each in scored] == [len(ids) + 1, 3]
        assert (scored[0].tokens[-1] == "<|endoftext|>") == bool(bias)


def test_a_stop_text_may_begin_in_one_token_and_end_in_the_next(deployment: Deployment, client: OpenAI) -> None:
    whole = complete(client, temperature=0, logprobs=0, max_tokens=12).choices[0]
    cut = whole.logprobs.text_offset[6]  # where a token begins
    stop = whole.text[cut - 1 : cut + 1]
    stopped = complete(client, temperature=0, max_tokens=12, stop=[stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


def test_a_seed_repeats_a_text(client: OpenAI) -> None:
    first, second = complete(client, seed=7, n=2), complete(client, seed=7, n=2)
    assert texts(first) == texts(second) != texts(complete(client, seed=8, n=2))
    assert first.system_fingerprint == second.system_fingerprint


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"logprobs": 1}], ids=["plain", "echo", "logprobs"])
def test_a_joined_stream_is_the_plain_reply(client: OpenAI, options: dict[str, Any]) -> None:
    asked = {"prompt": ["One day", f"A {SEPARATOR} cat\x85"], "n": 2, **options}
    whole = complete(client, **asked)
    chunks = list(complete(client, **asked, stream=True, stream_options={"include_usage": True}))
    joined, reasons, tokens = [""] * 4, [None] * 4, [[], [], [], []]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        joined[choice.index] += choice.text
        assert reasons[choice.index] is None  # nothing comes after the reason
        reasons[choice.index] = choice.finish_reason
        tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert joined == texts(whole)
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens if choice.logprobs else [] for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_line_separator_ends_no_stream(deployment: Deployment, client: OpenAI) -> None:
    token = deployment.tokenizer.encode(SEPARATOR)[0]
    asked = {"prompt": f"One{SEPARATOR}day", "logit_bias": {str(token): 100}, "max_tokens": 4}
    whole = complete(client, **asked)
    assert SEPARATOR in whole.choices[0].text
    assert "".join(c.text for chunk in complete(client, **asked, stream=True) for c in chunk.choices) == texts(whole)[0]


def test_extra_parameters_work(deployment: Deployment, client: OpenAI) -> None:
    greedy = texts(complete(client, temperature=0))
    assert texts(complete(client, extra_body={"top_k": 1})) == greedy
    assert texts(complete(client, extra_body={"min_p": 0.999})) == greedy
    first = complete(client, temperature=0, logprobs=0).choices[0].logprobs.tokens[0]
    end = deployment.tokenizer.names(range(deployment.tokenizer.n_vocab)).index(first)
    assert texts(complete(client, temperature=0, extra_body={"stop_token_ids": [end]})) == [""]


@pytest.mark.parametrize(
    ("changed", "kind", "code", "param"),
    [
        ({"temperature": -1}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"n": 200, "max_tokens": 1000}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"extra_body": {"beams": 2}}, openai.BadRequestError, "unrecognized_parameter", "beams"),
        ({"prompt": [0, 319]}, openai.BadRequestError, "invalid_value", "prompt[1]"),
        ({"prompt": [[0, 319]]}, openai.BadRequestError, "invalid_value", "prompt[0][1]"),
        ({"prompt": [[0], [1, 2, 319]]}, openai.BadRequestError, "invalid_value", "prompt[1][2]"),
        ({"logit_bias": {"319": 1}}, openai.BadRequestError, "invalid_value", "logit_bias[319]"),
        ({"prompt": "a b c d e f g h " * 20}, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ({"model": "other"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "tiny:step=1"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "new"}, openai.ConflictError, "checkpoint_not_ready", "model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and "prompt" not in value else "",
)
def test_an_error_has_its_class_code_and_parameter(
    client: OpenAI, changed: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            complete(client, **changed, stream=stream)
        assert (caught.value.code, caught.value.param) == (code, param)


def test_a_full_context_ends_with_length(deployment: Deployment, client: OpenAI) -> None:
    prompt = deployment.tokenizer.encode("a b c d e f g h " * 20)[: BLOCK - 2]
    done = complete(client, prompt=prompt, max_tokens=9, extra_body={"ignore_eos": True})
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 2)


def test_a_conflict_is_sent_once(deployment: Deployment) -> None:
    sent: list[int] = []
    client = noting_client(deployment.url, lambda response: sent.append(response.status_code))
    with client, pytest.raises(openai.ConflictError):
        complete(client, model="new")
    assert sent == [409]


def test_a_chat_is_refused_with_openais_words(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not a chat model") as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    assert (caught.value.code, caught.value.param) == (None, "model")


def test_a_stream_that_is_closed_frees_its_row(deployment: Deployment, client: OpenAI) -> None:
    with complete(client, **LONG, stream=True) as stream:
        next(iter(stream))
        assert deployment.open_requests == 1
    eventually(lambda: deployment.open_requests == 0, 2)


def test_a_busy_service_is_asked_again(deployment: Deployment, client: OpenAI) -> None:
    sent: list[int] = []
    with OpenAI(base_url=deployment.narrow_url, api_key="none", max_retries=0) as other:
        stream = complete(other, **LONG, stream=True)
        next(iter(stream))

        def note(response: Any) -> None:
            sent.append(response.status_code)
            stream.close()

        with noting_client(deployment.narrow_url, note) as patient:
            assert texts(complete(patient)) == texts(complete(client))
    assert sent == [429, 200]


def test_32_at_once_get_what_each_gets_alone(deployment: Deployment, client: OpenAI) -> None:
    async def at_once() -> list[Any]:
        async with AsyncOpenAI(base_url=deployment.url, api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(complete(many, seed=seed) for seed in range(32)))

    together = [texts(done) for done in asyncio.run(at_once())]
    assert together[::8] == [texts(complete(client, seed=seed)) for seed in range(0, 32, 8)]
    assert len({text for [text] in together}) == 32


def noting_client(url: str, note: Callable[[Any], None]) -> OpenAI:
    """A client that sends a request twice at most, and shows its replies."""
    transport = openai.DefaultHttpxClient(event_hooks={"response": [note]})
    return OpenAI(base_url=url, api_key="none", max_retries=1, http_client=transport)
