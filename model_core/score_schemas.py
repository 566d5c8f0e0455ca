"""Requests about tokens and likelihoods, and their results: /tokenize, /detokenize and /score.

Torch-free, like `schemas.py`. What only a tokenizer or a model knows (whether an id exists, how many tokens a text has)
is checked by `tokenizer.py` and `generation/scoring.py`, with the same JSON pointers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from model_core.config import Config, Flag, Name, Whole, misfit
from model_core.schemas import MAX_PROMPT_CHARACTERS, CheckpointRef, ResultWarning, Timeout, Weights

MAX_SCORE_ITEMS = 1000  # of one request
MAX_TOKENS = 65_536  # of one request to /detokenize, and the default limit of /score


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _some_ids(value: Any) -> Any:
    if isinstance(value, list) and not value:  # pydantic would also count a list whose ids are all wrong as empty
        raise PydanticKnownError("too_short", {"field_type": "List", "min_length": 1, "actual_length": 0})
    return _listed(value)


def _form(value: Any) -> str:
    """Tag of the form that a text to score has; text for everything that has none."""
    if isinstance(value, list | tuple):
        return "<ids>"
    return "<prefixed>" if isinstance(value, dict | PrefixedText) else "<text>"


LongText = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
TokenId = Annotated[Whole, Field(ge=0, lt=2**24)]
ScoreIds = Annotated[
    tuple[TokenId, ...],
    Field(max_length=MAX_TOKENS, fail_fast=True),  # one wrong id is enough to know
    BeforeValidator(_some_ids, json_schema_input_type=Annotated[list[TokenId], Field(min_length=1)]),
]


class PrefixedText(Config):
    """A text that is scored behind another one, which is read but not counted."""

    text: LongText
    prefix: LongText = ""


ScoreText = Annotated[
    Annotated[LongText, Tag("<text>")] | Annotated[ScoreIds, Tag("<ids>")] | Annotated[PrefixedText, Tag("<prefixed>")],
    Discriminator(_form),
]


class ScorePair(Config):
    """Two texts of which the first one should be more likely, and what stands before both."""

    good: LongText
    bad: LongText
    prefix: LongText = ""


Bos = Literal["none", "eot"]
ScoreTexts = Annotated[tuple[ScoreText, ...], Field(max_length=MAX_SCORE_ITEMS), BeforeValidator(_listed)]
ScorePairs = Annotated[tuple[ScorePair, ...], Field(max_length=MAX_SCORE_ITEMS), BeforeValidator(_listed)]


class TokenizeRequest(Config):
    """Request for the tokens of a text."""

    run: Name
    checkpoint: CheckpointRef = "best"
    text: LongText


class DetokenizeRequest(Config):
    """Request for the text of tokens."""

    run: Name
    checkpoint: CheckpointRef = "best"
    tokens: Annotated[tuple[TokenId, ...], Field(max_length=MAX_TOKENS, fail_fast=True), BeforeValidator(_some_ids)] = (
        Field(json_schema_extra={"minItems": 1})
    )


class TokenizeResult(Config):
    """Tokens of a text.

    Attributes:
        run: Name of the run.
        checkpoint: File whose tokenizer it is.
        tokens: Ids.
        pieces: Text of each token; ``bytes:`` and its bytes where it is no whole character.
        offsets: First byte of each token in the text's UTF-8, and the byte after its last.
        count: Number of tokens.
        max_tokens: Positions of the model.
        warnings: What the client should know.
    """

    run: str
    checkpoint: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    count: int
    max_tokens: int
    warnings: tuple[ResultWarning, ...] = ()


class DetokenizeResult(Config):
    """Text of tokens; `whole` is false where their bytes are not UTF-8, which U+FFFD replaces in the text."""

    run: str
    checkpoint: str
    text: str
    whole: bool
    warnings: tuple[ResultWarning, ...] = ()


class ScoreRequest(Config):
    """Request for the log-likelihoods of texts, or for the verdicts on pairs of texts.

    Attributes:
        run: Name of the run.
        checkpoint: See `GenerateRequest`.
        texts: Texts, each as text, as ids, or with a prefix; None for pairs.
        pairs: Minimal pairs; None for texts.
        bos: ``none``: the first token is not counted, since nothing precedes it; ``eot``: it is, after an end of text.
        stride: Tokens that each further window counts in a text longer than the model; None refuses such a text.
        weights: Format of the parameters; None takes the one that generates.
        detail: Return the log-likelihood of each token.
        timeout_s: See `GenerateRequest`.
    """

    run: Name
    checkpoint: CheckpointRef = "best"
    texts: ScoreTexts | None = Field(default=None, json_schema_extra={"minItems": 1})
    pairs: ScorePairs | None = Field(default=None, json_schema_extra={"minItems": 1})
    bos: Bos = "none"
    stride: Annotated[Whole, Field(ge=1, le=2**17)] | None = None
    weights: Weights | None = None
    detail: Flag = False
    timeout_s: Timeout | None = None

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        if not self.texts and not self.pairs:
            raise misfit("texts" if self.pairs is None else "pairs", "there is nothing to score", None)
        if self.texts is not None and self.pairs is not None:
            raise misfit("pairs", "texts are given too; score pairs in a request of their own", None)
        return self


class InferenceScoreRequest(ScoreRequest):
    """What the API asks of an inference process.

    Attributes:
        max_tokens: Most tokens that the model may read for it.
        stream: Whether results are sent as they come.
        client: Whose request it is, for fairness.
    """

    max_tokens: Annotated[Whole, Field(ge=1)] = MAX_TOKENS
    stream: Flag = False
    client: str = Field(default="", max_length=200)


class TokenScore(Config):
    """Log-likelihood of one counted token in nats; null if it is not finite."""

    token: int
    text: str
    logprob: float | None


class TextScore(Config):
    """Log-likelihood of one text.

    Attributes:
        logprob: Sum over the counted tokens, in nats; null if it is not finite.
        tokens: Number of counted tokens.
        bytes: Bytes of the text that they cover.
        bits_per_byte: -logprob / (bytes ln 2); null without bytes, or if it is not finite.
        token_logprobs: One entry per counted token with `detail`; otherwise the key is omitted.
    """

    logprob: float | None
    tokens: int
    bytes: int
    bits_per_byte: float | None
    token_logprobs: tuple[TokenScore, ...] | None = None

    @model_serializer(mode="wrap")
    def _omit_unrequested_logprobs(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.token_logprobs is None:
            del fields["token_logprobs"]
        return fields


class PairScore(Config):
    """Verdict on one pair.

    Attributes:
        good: Score of the text that should be more likely.
        bad: Score of the other.
        correct: Whether the sum of `good` is strictly greater; a tie is wrong, and so is a sum that is not finite.
        margin: Difference of the sums; null if one of them is not finite.
    """

    good: TextScore
    bad: TextScore
    correct: bool
    margin: float | None


class ScoreUsage(Config):
    """Tokens that the model read, again for each window that reads them, and those that were counted."""

    read_tokens: int
    scored_tokens: int


class ScoreResult(Config):
    """Response to a `ScoreRequest`, with `results` for texts and `pairs` for pairs.

    Attributes:
        run: Name of the run.
        checkpoint: File that was used.
        step: Its training step.
        sha256: Its hash.
        weights: Format of the parameters that were used.
        fingerprint: Changes when results may differ in their last bits.
        results: Score of each text, in order; None for pairs.
        pairs: Verdict on each pair, in order; None for texts.
        accuracy: Share of correct pairs; None for texts.
        ties: Pairs with equal sums; None for texts.
        not_finite: Texts, or pairs, with a sum that is not finite.
        usage: Tokens read and counted.
        warnings: What the client should know.
    """

    run: str
    checkpoint: str
    step: int
    sha256: str
    weights: Weights
    fingerprint: str
    results: tuple[TextScore, ...] | None = None
    pairs: tuple[PairScore, ...] | None = None
    accuracy: float | None = None
    ties: int | None = None
    not_finite: int
    usage: ScoreUsage
    warnings: tuple[ResultWarning, ...] = ()

    @model_serializer(mode="wrap")
    def _omit_the_other_form(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {key: value for key, value in fields.items() if value is not None}
