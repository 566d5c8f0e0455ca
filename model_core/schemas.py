"""Requests to a trained model and their results: generated text, or attention.

The same classes validate a query string, a JSON body and a call from Python, so that the bounds are defined once.
Torch-free, because the service validates a request before any model is loaded.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import PydanticCustomError

from model_core.config import Config, Name, Real

MAX_PROMPT_CHARACTERS = 200_000  # on a million spaces GPT-2's regular expression overflows its stack
_RANDOM_SEEDS = 2**32  # small enough for an exact double in any JSON parser


def _json_number(value: Any) -> Any:
    """Reject booleans, and accept 20.0 as an integer, as JSON Schema does."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "must be a whole number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# Values of a query string are text, so "20" is a number here, unlike in a configuration.
JsonNumber = BeforeValidator(_json_number)
Count = Annotated[int, JsonNumber]
TokenCount = Annotated[int, Field(ge=1, le=2**17), JsonNumber]  # bounds first: the schema omits later ones
CheckpointRef = Annotated[str, Field(min_length=1, max_length=100)]  # best, final, latest, step=N or a file name
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[tuple[StopText, ...], Field(max_length=16)]
FinishReason = Literal["stop", "length", "context"]
ExampleId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,11}|t_[0-9a-f]{8,64})$"), BeforeValidator(_number_as_text)]


class SamplingParams(Config):
    """A prompt and how to continue it, for any model.

    Attributes:
        prompt: Text to continue; empty starts a new text.
        max_new_tokens: Upper limit of new tokens; fewer when the context window is full.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample among this number of most likely tokens; 0 takes all.
        top_p: Sample among the most likely tokens that together have this probability.
        seed: Seed of the random numbers; None draws a seed, which the result contains.
        n: Number of continuations of the same prompt.
        stop: Texts that end a continuation; they are not part of it.
        logprobs: Return the log probability of each token and of this number of most likely tokens; None returns none.
    """

    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS)
    max_new_tokens: TokenCount = 100
    temperature: Real = Field(default=1.0, ge=0.0, le=1000.0)
    top_k: Count = Field(default=50, ge=0, le=2**24)
    top_p: Real = Field(default=1.0, gt=0.0, le=1.0)
    seed: Annotated[int, Field(ge=0, lt=2**63), JsonNumber] | None = None
    n: Count = Field(default=1, ge=1, le=256)
    stop: Annotated[Stops, BeforeValidator(_as_tuple, json_schema_input_type=StopText | Stops)] = ()
    logprobs: Annotated[int, Field(ge=0, le=20), JsonNumber] | None = None

    def seeded(self) -> Self:
        """Draw a seed if there is none, from the operating system's random numbers.

        Returns:
            The same parameters with a seed.
        """
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbelow(_RANDOM_SEEDS)})


class GenerateRequest(SamplingParams):
    """Request for text from a checkpoint of a run."""

    run: Name
    checkpoint: CheckpointRef = "best"
    stream: bool = False


class TokenLogprob(Config):
    """Log probability of one token in nats, before temperature, top-k and top-p."""

    token: int
    text: str
    logprob: float


class ScoredToken(TokenLogprob):
    """A generated token and the most likely tokens at its position."""

    top: tuple[TokenLogprob, ...] = ()


class Choice(Config):
    """One continuation.

    Attributes:
        index: Number of the continuation, from 0.
        text: The generated text, without the prompt; cut before a stop text.
        tokens: Ids of that text; after a cut, the last one may extend beyond it. The end-of-text id is not included.
        finish_reason: ``stop`` (end of text, or a stop text), ``length`` (max_new_tokens) or ``context`` (no position
            is left).
        logprobs: One entry per token if requested; otherwise the key is omitted.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[ScoredToken, ...] | None = None

    @model_serializer(mode="wrap")
    def _omit_unrequested_logprobs(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.logprobs is None:
            del fields["logprobs"]
        return fields


class Usage(Config):
    """Number of prompt tokens (1 for an empty prompt, its start token) and of the tokens of all choices."""

    prompt_tokens: int
    completion_tokens: int


class ResultWarning(Config):
    """What a client should know about a result."""

    code: str
    detail: str


class GenerateResult(Config):
    """Response to a `GenerateRequest`; `checkpoint` is the file that was used."""

    run: str
    checkpoint: str
    step: int
    prompt: str
    seed: int
    choices: tuple[Choice, ...]
    usage: Usage
    warnings: tuple[ResultWarning, ...] = ()


class AttentionRequest(Config):
    """Request for the attention of every head on one text.

    Attributes:
        run: Name of the run.
        id: Number of a test example, or `text_id` of a free text.
        checkpoint: See `GenerateRequest`.
        text: The free text, for an id that starts with ``t_``.
        max_tokens: Upper limit of tokens that are processed; None takes the limit of the run's configuration.
    """

    run: Name
    id: ExampleId
    checkpoint: CheckpointRef = "best"
    text: str | None = Field(default=None, min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    max_tokens: TokenCount | None = None


def text_id(text: str) -> str:
    """Compute the id of a free text in attention records.

    Args:
        text: The text.

    Returns:
        ``t_`` and the first 16 hex digits of the text's sha256.
    """
    return "t_" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
