"""Requests to a trained model and their results: generated text, or attention.

The same classes validate a query string, a JSON body and a call from Python, so that the bounds are defined once.
Torch-free, because the service validates a request before any model is loaded.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model_core.config import Config, Name, Real, misfit

MAX_PROMPT_CHARACTERS = 200_000  # on a million spaces GPT-2's regular expression overflows its stack
MAX_BIASES = 1024  # token ids of one logit_bias
_RANDOM_SEEDS = 2**32  # small enough for an exact double in any JSON parser
_TOKEN_ID = r"^(0|[1-9][0-9]{0,7})$"  # as a key of JSON


def _json_number(value: Any) -> Any:
    """Reject booleans, and accept 20.0 as an integer, as JSON Schema does."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "must be a whole number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _keys_as_ids(value: Any) -> Any:
    """Read the keys of a JSON object as token ids."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if isinstance(key, bool) or not re.fullmatch(_TOKEN_ID, str(key), re.ASCII):
            raise misfit(str(key), f"{key!r} is no token id: a whole number from 0 on", key)
    ids = {int(key): bias for key, bias in value.items()}
    if len(ids) < len(value):
        raise ValueError("an id is given twice, as a number and as a text")
    return ids


# Values of a query string are text, so "20" is a number here, unlike in a configuration.
JsonNumber = BeforeValidator(_json_number)
Count = Annotated[int, JsonNumber]
TokenCount = Annotated[int, Field(ge=1, le=2**17), JsonNumber]  # bounds first: the schema omits later ones
CheckpointRef = Annotated[str, Field(min_length=1, max_length=100)]  # best, final, latest, step=N or a file name
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[tuple[StopText, ...], Field(max_length=16)]
TokenId = Annotated[int, Field(ge=0, lt=10**8), JsonNumber]  # the model's tokenizer has fewer: the engine checks that
StopTokens = Annotated[tuple[TokenId, ...], Field(max_length=16)]
LogitBias = Annotated[
    dict[int, Annotated[Real, Field(ge=-100.0, le=100.0)]],
    Field(max_length=MAX_BIASES),
    BeforeValidator(_keys_as_ids),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": _TOKEN_ID},
            "additionalProperties": {"type": "number", "minimum": -100.0, "maximum": 100.0},
            "maxProperties": MAX_BIASES,
        },
        mode="validation",
    ),
]
TokenIds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0, lt=10**8)], ...], Field(min_length=1, max_length=2**17)
]
AttentionTokens = Annotated[  # more never fit: their squares are above 2^30 weights
    tuple[Annotated[int, Field(strict=True, ge=0, lt=10**8)], ...],
    Field(min_length=1, max_length=2**15, fail_fast=True),
    BeforeValidator(_listed),
]
Timeout = Annotated[
    Real,
    Field(gt=0.0, le=86_400.0),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0.0, "maximum": 86_400.0}, mode="validation"),
]
FinishReason = Literal["stop", "length", "context"]
Weights = Literal["fp32", "fp16", "bf16", "int8"]
ExampleId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,11}|t_[0-9a-f]{8,64})$"), BeforeValidator(_number_as_text)]


class SamplingParams(Config):
    """How to continue a prompt, for any model.

    What changes the logits is applied in this order: logit_bias, end of text (min_new_tokens, ignore_eos),
    repetition_penalty, frequency_penalty, presence_penalty, temperature, top_k, top_p, min_p.

    Attributes:
        max_new_tokens: Upper limit of new tokens; fewer when the context window is full.
        min_new_tokens: Neither the end of text nor a stop_token_id is drawn before this number of new tokens.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample among this number of most likely tokens; 0 takes all.
        top_p: Sample among the most likely tokens that together have this probability.
        min_p: Sample among the tokens with this share of the probability of the most likely one.
        repetition_penalty: Divides positive and multiplies negative logits of tokens of prompt and output.
        presence_penalty: Subtracted from the logits of tokens of the output.
        frequency_penalty: Subtracted from the logits of tokens of the output as often as they occur.
        logit_bias: Added to the logits of these token ids.
        ignore_eos: The end of text is never drawn.
        seed: Seed of the random numbers; None draws a seed, which the result contains.
        n: Number of continuations of the same prompt.
        stop: Texts that end a continuation; they are not part of it.
        stop_token_ids: Token ids that end a continuation; they are not part of it.
        logprobs: Return the log probability of each token and of this number of most likely tokens; None returns none.
    """

    max_new_tokens: TokenCount = 100
    min_new_tokens: Count = Field(default=0, ge=0, le=2**17)
    temperature: Real = Field(default=1.0, ge=0.0, le=1000.0)
    top_k: Count = Field(default=50, ge=0, le=2**24)
    top_p: Real = Field(default=1.0, gt=0.0, le=1.0)
    min_p: Real = Field(default=0.0, ge=0.0, lt=1.0)
    repetition_penalty: Real = Field(default=1.0, gt=0.0, le=10.0)
    presence_penalty: Real = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: Real = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: LogitBias = Field(default={})
    ignore_eos: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63), JsonNumber] | None = None
    n: Count = Field(default=1, ge=1, le=256)
    stop: Annotated[Stops, BeforeValidator(_as_tuple, json_schema_input_type=StopText | Stops)] = ()
    stop_token_ids: Annotated[StopTokens, BeforeValidator(_as_tuple, json_schema_input_type=TokenId | StopTokens)] = ()
    logprobs: Annotated[int, Field(ge=0, le=20), JsonNumber] | None = None

    def seeded(self) -> Self:
        """Draw a seed if there is none, from the operating system's random numbers.

        Returns:
            The same parameters with a seed.
        """
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbelow(_RANDOM_SEEDS)})

    @model_validator(mode="after")
    def _least_and_most_fit(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            detail = f"must be at most max_new_tokens, which is {self.max_new_tokens}, got {self.min_new_tokens}"
            raise misfit("min_new_tokens", detail, self.min_new_tokens)
        return self


class _OfCheckpoint(Config):
    """Which model a request is about."""

    run: Name
    checkpoint: CheckpointRef = "best"


class GenerateRequest(SamplingParams, _OfCheckpoint):
    """Request for text from a checkpoint of a run.

    Attributes:
        run: Name of the run.
        checkpoint: ``best``, ``final``, ``latest``, ``step=N`` or a file name.
        prompt: Text to continue; empty starts a new text.
        stream: Reply piece by piece.
        timeout_s: End with an error after this time; None leaves it to the service, whose own limit always holds.
    """

    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS)
    stream: bool = False
    timeout_s: Timeout | None = None


class InferenceRequest(SamplingParams, _OfCheckpoint):
    """What the API asks of an inference process, whatever the door that the client used.

    Attributes:
        run: Name of the run.
        checkpoint: File name of the checkpoint.
        prompts: Texts, or token ids, to continue; each gets `n` continuations.
        echo: With `logprobs`, return those of the prompts too; then `max_new_tokens` may be 0.
        stream: Reply piece by piece.
        timeout_s: See `GenerateRequest`.
        client: Whose request it is: rows are shared fairly between clients.
    """

    prompts: tuple[Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)] | TokenIds, ...] = Field(
        min_length=1, max_length=64
    )
    max_new_tokens: Annotated[int, Field(ge=0, le=2**17), JsonNumber] = 100
    echo: bool = False
    stream: bool = False
    timeout_s: Timeout | None = None
    client: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _generates_or_echoes(self) -> Self:
        if self.max_new_tokens == 0 and not self.echo:
            raise misfit("max_new_tokens", "must be at least 1 without echo, got 0", 0)
        return self


class TokenLogprob(Config):
    r"""Log probability of one token in nats, before anything that changes the logits.

    Attributes:
        token: Id of the token.
        text: Its text; ``bytes:\xe2\x80`` where its bytes are no whole characters.
        logprob: Natural logarithm of its probability.
    """

    token: int
    text: str
    logprob: float


_OMITTED = {"logprobs", "end_token"}


class ScoredToken(TokenLogprob):
    """A token and the most likely tokens at its position."""

    top: tuple[TokenLogprob, ...] = ()


class _WithLogprobs(Config):
    """Omits keys of log probabilities that were not requested."""

    logprobs: tuple[ScoredToken | None, ...] | None = None

    @model_serializer(mode="wrap")
    def _omit_unrequested_logprobs(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {key: value for key, value in fields.items() if value is not None or key not in _OMITTED}


class Choice(_WithLogprobs):
    """One continuation.

    Attributes:
        index: Number of the continuation, from 0; that of continuation j of prompt i is i * n + j.
        text: The generated text, without the prompt; cut before a stop text.
        tokens: Ids of that text; after a cut, the last one may extend beyond it. The id that ended it is not included.
        finish_reason: ``stop`` (end of text, a stop text or a stop_token_id), ``length`` (max_new_tokens) or
            ``context`` (no position is left).
        logprobs: One entry per token if requested; otherwise the key is omitted.
        end_token: With logprobs, the token that ended the text; the key is omitted where a stop text or a limit did.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[ScoredToken, ...] | None = None
    end_token: ScoredToken | None = None


class PromptResult(_WithLogprobs):
    """What was read of one prompt.

    Attributes:
        tokens: Its ids.
        pieces: With echo or logprobs, the text of each token, as `TokenLogprob` has it; otherwise empty.
        logprobs: One entry per token if requested, the first of them null; otherwise the key is omitted.
    """

    tokens: tuple[int, ...]
    pieces: tuple[str, ...] = ()


class Usage(Config):
    """Number of tokens of a request.

    Attributes:
        prompt_tokens: Of the prompts; 1 for an empty prompt, its start token.
        completion_tokens: Of all choices.
        cached_tokens: Of the prompts, those that an earlier request had left in the cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class ResultWarning(Config):
    """What a client should know about a result."""

    code: str
    detail: str


class GenerateResult(Config):
    """Response to a `GenerateRequest`.

    Attributes:
        run: Name of the run.
        checkpoint: The file that was used.
        step: Training step of the checkpoint.
        prompt: The prompt as it was given.
        tokens_text: With logprobs, the text of each token of the prompt, as `TokenLogprob` has it; otherwise the key
            is omitted.
        seed: Seed of the request, given or drawn.
        choices: Every continuation, by index.
        usage: Number of tokens.
        weights: Number format that the model ran in.
        fingerprint: 12 hexadecimal digits; equal requests with equal fingerprints have equal results.
        warnings: What a client should know.
    """

    run: str
    checkpoint: str
    step: int
    prompt: str
    tokens_text: tuple[str, ...] | None = None
    seed: int
    choices: tuple[Choice, ...]
    usage: Usage
    weights: Weights
    fingerprint: str
    warnings: tuple[ResultWarning, ...] = ()


class InferenceResult(Config):
    """Response to an `InferenceRequest`: that of `GenerateResult`, with what any door needs.

    Attributes:
        run: Name of the run.
        checkpoint: The file that was used.
        step: Training step of the checkpoint.
        sha256: Hash of the file, hex.
        seed: Seed of the request, given or drawn.
        weights: Number format that the model ran in.
        fingerprint: See `GenerateResult`.
        prompts: What was read of each prompt.
        choices: Every continuation, by index.
        usage: Number of tokens.
        warnings: What a client should know.
    """

    run: str
    checkpoint: str
    step: int
    sha256: str
    seed: int
    weights: Weights
    fingerprint: str
    prompts: tuple[PromptResult, ...]
    choices: tuple[Choice, ...]
    usage: Usage
    warnings: tuple[ResultWarning, ...] = ()


class PatternsRequest(_OfCheckpoint):
    """What the API asks of an inference process: to keep what every head attends to in the windows of a dataset.

    Attributes:
        run: Name of the run.
        checkpoint: File name of the checkpoint.
        windows_of: Run whose dataset the windows are of.
        tokens: Tokens of a window; as many as a probe has at most.
    """

    windows_of: Name
    tokens: TokenCount


class AttentionRequest(Config):
    """Request for the attention of every head on one text.

    Attributes:
        run: Name of the run.
        id: Number of a test example, or `text_id` of a free text.
        checkpoint: See `GenerateRequest`.
        text: The free text, for an id that starts with ``t_``.
        tokens: The token ids in place of a text.
        max_tokens: Upper limit of tokens that are processed; None takes the limit of the run's configuration for an
            example, and the whole of a text.
    """

    run: Name
    id: ExampleId
    checkpoint: CheckpointRef = "best"
    text: str | None = Field(default=None, min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    tokens: AttentionTokens | None = None
    max_tokens: TokenCount | None = None


class ProbeRequest(Config):
    """Request for what the probe measures of every head of a checkpoint.

    Attributes:
        run: Name of the run.
        checkpoint: See `GenerateRequest`.
    """

    run: Name
    checkpoint: CheckpointRef = "best"


def text_id(text: str) -> str:
    """Compute the id of a free text in attention records.

    Args:
        text: The text.

    Returns:
        ``t_`` and the first 16 hex digits of the text's sha256.
    """
    return "t_" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def tokens_id(tokens: Sequence[int]) -> str:
    """Compute the id of token ids that were sent in place of a text.

    Args:
        tokens: The token ids.

    Returns:
        As `text_id`, of the byte FF and the ids as little-endian uint32: no UTF-8 begins with that byte, so it is never
        the id of a text.
    """
    data = b"\xff" + b"".join(token.to_bytes(4, "little") for token in tokens)
    return "t_" + hashlib.sha256(data).hexdigest()[:16]
