"""What occupies a row of the cache: one continuation of a prompt, or one sequence that is scored.

Both are read chunk by chunk from their own start. Then a continuation grows by one token a step, and a scored sequence
has ended.

Shapes: N tokens, V ids of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model_core.generation.detokenizer import Detokenizer
from model_core.generation.forward.model_runner import CHUNK, PromptChunk
from model_core.generation.request import Request, ScoreRequest, TextDelta
from model_core.generation.sampler import NonFiniteLogits, Sampler, choice_generator
from model_core.schemas import Choice, FinishReason, ScoredToken, TokenLogprob
from model_core.tokenizer import Tokenizer

_MOST_LISTED = 20  # of a request's `logprobs`


class Continuation:
    """One choice of a request.

    Args:
        request: The request.
        index: Index of the choice.
        tokenizer: Tokenizer of the model.

    Attributes:
        read: Tokens of the prompt that are in the cache.
        announced: Position up to which a pass that has begun writes.
        tokens: Generated ids.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer) -> None:
        self.request, self.index = request, index
        self.read = self.announced = 0
        self.tokens: list[int] = []
        self.sampler = Sampler(request.params, choice_generator(request.seed, index), request.prompt, tokenizer.eot)
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(request.params.stop)
        self._logprobs: list[ScoredToken] = []
        self._emitted = 0  # tokens
        self._ends = {*request.params.stop_token_ids, tokenizer.eot}

    @property
    def ids(self) -> Sequence[int]:
        """Ids that are read before the first is generated."""
        return self.request.prompt

    @property
    def prefix_keys(self) -> Sequence[bytes]:
        """Keys of the prompt's full chunks in the prefix cache."""
        return self.request.prefix_keys

    @property
    def skippable(self) -> int:
        """Number of full chunks that may come from the prefix cache: not those whose hidden states are needed."""
        return 0 if self.request.wants_prompt else (len(self.ids) - 1) // CHUNK

    @property
    def reserved(self) -> int:
        """Most positions that it takes."""
        return len(self.request.prompt) + self.request.max_new

    @property
    def position(self) -> int:
        """Index of the newest token in the sequence; the tokens before it are in the cache."""
        return len(self.request.prompt) + len(self.tokens) - 1

    @property
    def cached(self) -> int:
        """Positions of its row that are written."""
        return self.position if self.tokens else max(self.read, self.announced)

    def scored_targets(self) -> Sequence[int]:
        """Find the tokens that the next chunk predicts.

        Returns:
            Their ids, if their log probabilities are wanted and not known.
        """
        if not self.request.wants_prompt or self.request.prompt_scored > self.read + 1:
            return ()
        return self.ids[self.read + 1 : self.read + CHUNK + 1]

    def add_scores(self, targets: Sequence[int], logits: Tensor) -> None:
        """Record the log probabilities of tokens of the prompt.

        Args:
            targets: Ids of `scored_targets`.
            logits: Logits that predict them, (N, V).
        """
        counts = [self.request.params.logprobs or 0] * len(targets)
        self.request.add_prompt_logprobs(scored_tokens(self._tokenizer, targets, logits, counts))

    def append(self, token: int, scored: ScoredToken | None) -> bool:
        """Append a drawn token.

        Args:
            token: Its id.
            scored: Its log probability, if requested.

        Returns:
            Whether the sequence has ended with it.
        """
        if token in self._ends:
            return self.end("stop", end_token=scored)
        self.tokens.append(token)
        if scored is not None:
            self._logprobs.append(scored)
        text = self._detokenizer.add(self._tokenizer.decode_bytes([token]))
        if self._detokenizer.stopped:
            return self.end("stop", text)
        if text or self._detokenizer.settled_count > self._emitted:
            self.request.add_delta(self._delta(text, self._detokenizer.settled_count))
        return len(self.tokens) == self.request.max_new and self.end(self.request.limit)

    def end(self, reason: FinishReason, text: str = "", end_token: ScoredToken | None = None) -> bool:
        """Emit what was held back and why the choice ends, and hand it to the request.

        Args:
            reason: Why it ends; a stop string in the last text makes it ``stop``.
            text: Text of the last token that is not emitted yet.
            end_token: The token that ends it, with its log probability if requested.

        Returns:
            True.
        """
        text += self._detokenizer.finish()
        count = self._detokenizer.token_count
        if self._detokenizer.stopped:
            reason, end_token = "stop", None
        last = replace(self._delta(text, count), finish_reason=reason, end_token=end_token)
        self.request.add_delta(last)
        choice = Choice(
            index=self.index,
            text=self._detokenizer.text,
            tokens=tuple(self.tokens[:count]),
            finish_reason=reason,
            logprobs=tuple(self._logprobs[:count]) if self.request.params.logprobs is not None else None,
            end_token=end_token,
        )
        self.request.end_choice(choice)
        return True

    def _delta(self, text: str, count: int) -> TextDelta:
        """Text, and the tokens up to a count that were not passed on before."""
        new = slice(self._emitted, count)
        self._emitted = count
        logprobs = tuple(self._logprobs[new]) if self.request.params.logprobs is not None else None
        return TextDelta(self.index, text, tuple(self.tokens[new]), logprobs)


class ScoredSequence:
    """One sequence of a request for scores.

    Args:
        request: The request.
        index: Index of the sequence.

    Attributes:
        read: Tokens that are in the cache.
        announced: Position up to which a pass that has begun writes.
        ids: Ids that are read: all but the last one.
        prefix_keys: None: other texts seldom begin alike.
        skippable: None: all hidden states are needed.
    """

    prefix_keys: Sequence[bytes] = ()
    skippable = 0

    def __init__(self, request: ScoreRequest, index: int) -> None:
        self.request, self.index = request, index
        self.read = self.announced = 0
        self.ids: Sequence[int] = request.sequences[index][:-1]
        self._first = request.first[index]
        self._parts: list[Tensor] = []

    @property
    def reserved(self) -> int:
        """Most positions that it takes."""
        return len(self.ids)

    @property
    def cached(self) -> int:
        """Positions of its row that are written."""
        return max(self.read, self.announced)

    def counted(self, chunk: PromptChunk) -> tuple[int, Sequence[int]]:
        """Find the tokens that a chunk predicts and that count.

        Args:
            chunk: The chunk.

        Returns:
            Position in the chunk that predicts the first of them, and their ids.
        """
        target = max(chunk.start + 1, self._first)
        targets = self.request.sequences[self.index][target : chunk.start + len(chunk.tokens) + 1]
        return target - chunk.start - 1, targets

    def add(self, logprobs: Tensor) -> None:
        """Record log probabilities of the next tokens that count.

        Args:
            logprobs: The log probabilities, (N,), on the CPU.
        """
        self._parts.append(logprobs)

    def give_up(self) -> None:
        """Make NaN of the tokens that are not read yet, because a hidden state before them is not finite."""
        self._parts.append(torch.full((len(self.ids) + 1 - max(self.read + 1, self._first),), torch.nan))
        self.read = len(self.ids)

    def end(self) -> None:
        """Hand the score to the request."""
        self.request.end_sequence(self.index, torch.cat(self._parts) if self._parts else torch.empty(0))


Occupant = Continuation | ScoredSequence


def target_logprobs(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Compute the log probability of one token in each row.

    Args:
        logits: Logits, (N, V), float32.
        targets: Token ids, N of them.

    Returns:
        Log probabilities, (N,), on the CPU.
    """
    ids = torch.tensor(targets, device=logits.device)[:, None]  # (N, 1)
    return logits.log_softmax(dim=-1).gather(1, ids)[:, 0].cpu()  # (N,)


def scored_tokens(
    tokenizer: Tokenizer, tokens: Sequence[int], logits: Tensor, counts: Sequence[int]
) -> list[ScoredToken]:
    """Compute the log probabilities of tokens, and list the most likely ones at their positions.

    Args:
        tokenizer: Tokenizer of the model.
        tokens: Ids, N of them.
        logits: Logits that each was drawn from, or is predicted by, (N, V).
        counts: How many tokens to list for each; equal logits come in order of their ids.

    Returns:
        One entry for each token.

    Raises:
        NonFiniteLogits: A log probability is not a number.
    """
    logprobs = logits.log_softmax(dim=-1)  # (N, V)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()  # (N,)
    if any(value != value for value in own):  # NaN
        raise NonFiniteLogits
    listed: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if any(counts):
        # always the same number, because the order of equal values depends on it
        best = logprobs.topk(min(_MOST_LISTED, logprobs.size(1)))  # 2 x (N, 20)
        rows = zip(best.indices.tolist(), best.values.tolist(), counts, strict=True)
        listed = [sorted(zip(*pair, strict=True), key=lambda it: (-it[1], it[0]))[:k] for *pair, k in rows]
    return [_scored_token(tokenizer, token, value, top) for token, value, top in zip(tokens, own, listed, strict=True)]


def _scored_token(tokenizer: Tokenizer, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> ScoredToken:
    text, *texts = tokenizer.names([token, *(other for other, _ in top)])
    others = (TokenLogprob(token=t, text=s, logprob=v) for (t, v), s in zip(top, texts, strict=True))
    return ScoredToken(token=token, text=text, logprob=logprob, top=tuple(others))
