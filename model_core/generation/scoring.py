"""Log-likelihoods of texts: what the model reads, which tokens count, and what their log-probabilities say.

A window is what the model reads at once. Windows are planned before anything is computed, so every wrong text is known
at once; the engine computes them in any order, and `ScoreCollector` puts texts together again. Torch-free.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from model_core.errors import FieldProblem, InvalidParameters
from model_core.score_schemas import (
    InferenceScoreRequest,
    PairScore,
    PrefixedText,
    ScoreText,
    ScoreUsage,
    TextScore,
    TokenScore,
)
from model_core.tokenizer import Tokenizer, unknown_ids

Logprobs = Sequence[float]  # of the counted tokens of a window, in nats


@dataclass(frozen=True)
class Window:
    """Tokens that the model reads together, and the token after them.

    Attributes:
        tokens: Token ids; the model reads all but the last one.
        first: Index of the first counted token, at least 1; the others behind it count too.
    """

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class PlannedText:
    """One text, its counted tokens and its windows.

    Attributes:
        counted: Counted token ids.
        covered_bytes: Bytes of the text that they cover.
        windows: Their windows, which count each of them once, in order.
    """

    counted: tuple[int, ...]
    covered_bytes: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class ScorePlan:
    """Everything that a request needs computed.

    Attributes:
        texts: The texts in order; of pairs, the good and the bad one of each.
        is_pairs: Whether the request asks for verdicts on pairs.
        detail: Whether it asks for the log-probability of each token.
    """

    texts: tuple[PlannedText, ...]
    is_pairs: bool
    detail: bool

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The windows of all texts in order."""
        return tuple(window for text in self.texts for window in text.windows)

    @property
    def usage(self) -> ScoreUsage:
        """Tokens that are read and counted."""
        return ScoreUsage(
            read_tokens=sum(len(window.tokens) - 1 for window in self.windows),
            scored_tokens=sum(len(text.counted) for text in self.texts),
        )


def plan_scores(request: InferenceScoreRequest, tokenizer: Tokenizer, block_size: int) -> ScorePlan:
    """Encode the texts of a request and divide them into windows.

    Args:
        request: The request.
        tokenizer: Tokenizer of the model.
        block_size: Positions of the model.

    Returns:
        The plan.

    Raises:
        InvalidParameters: An id is unknown, a text is longer than the model without a stride, the stride is above
            `block_size`, or the texts have too many tokens.
    """
    if request.stride is not None and request.stride > block_size:
        problem = f"must be at most {block_size}, the positions of the model, got {request.stride}"
        raise InvalidParameters([FieldProblem("/stride", problem, request.stride)])
    items = list(_items(request))
    encoded = [_Encoded.of(item, tokenizer) for _, item in items]
    problems = [
        problem
        for (pointer, item), text in zip(items, encoded, strict=True)
        for problem in _problems(pointer, item, text, request.stride, tokenizer, block_size)
    ]
    if problems:
        raise InvalidParameters(problems)
    start = [tokenizer.eot] if request.bos == "eot" else []
    cuts = [list(text.spans(len(start), block_size, request.stride)) for text in encoded]
    read = sum(span.end - span.begin for spans in cuts for span in spans)
    if read > request.max_tokens:
        pointer = "/texts" if request.pairs is None else "/pairs"
        problem = f"the model would read {read:,} tokens, at most {request.max_tokens:,} in one request; send several"
        raise InvalidParameters([FieldProblem(pointer, problem, read)])
    texts = (text.planned((*start, *text.tokens), spans) for text, spans in zip(encoded, cuts, strict=True))
    return ScorePlan(tuple(texts), is_pairs=request.pairs is not None, detail=request.detail)


class ScoreCollector:
    """Turns the log-probabilities of windows into the results of texts or pairs, in order.

    Args:
        plan: What is computed.
        tokenizer: Names tokens for `detail`.

    Attributes:
        results: Every result so far.
    """

    def __init__(self, plan: ScorePlan, tokenizer: Tokenizer) -> None:
        self._plan, self._tokenizer = plan, tokenizer
        self._logprobs: dict[int, Logprobs] = {}  # by window, until its text is complete
        self._texts: list[TextScore] = []
        self._next_window = 0  # of the first text that is not complete
        self.results: list[TextScore | PairScore] = []

    def add(self, window: int, logprobs: Logprobs) -> None:
        """Store the log-probabilities of a window.

        Args:
            window: Its index in the plan's windows.
            logprobs: Of its counted tokens, in order.
        """
        self._logprobs[window] = logprobs

    def complete(self) -> list[TextScore | PairScore]:
        """Finish the texts whose windows are all there, up to the first one that waits.

        Returns:
            The new results, in order.
        """
        done = len(self.results)
        while len(self._texts) < len(self._plan.texts):
            text = self._plan.texts[len(self._texts)]
            windows = range(self._next_window, self._next_window + len(text.windows))
            if not all(window in self._logprobs for window in windows):
                break
            parts = [self._logprobs.pop(window) for window in windows]
            self._texts.append(self._text_score(text, list(itertools.chain(*parts))))
            self._next_window = windows.stop
            self._append()
        return self.results[done:]

    @property
    def not_finite(self) -> int:
        """Results with a sum that is not finite."""
        sums = (score.margin if isinstance(score, PairScore) else score.logprob for score in self.results)
        return sum(value is None for value in sums)

    @property
    def ties(self) -> int | None:
        """Pairs with equal sums; None for texts."""
        return sum(pair.margin == 0 for pair in self._pairs) if self._plan.is_pairs else None

    @property
    def accuracy(self) -> float | None:
        """Share of correct pairs; None for texts."""
        return sum(pair.correct for pair in self._pairs) / len(self._pairs) if self._plan.is_pairs else None

    @property
    def _pairs(self) -> list[PairScore]:
        return [score for score in self.results if isinstance(score, PairScore)]

    def _append(self) -> None:
        """Append the newest text's result, or that of the pair that it completes."""
        if not self._plan.is_pairs:
            self.results.append(self._texts[-1])
        elif len(self._texts) % 2 == 0:
            self.results.append(pair_score(*self._texts[-2:]))

    def _text_score(self, text: PlannedText, logprobs: Logprobs) -> TextScore:
        assert len(logprobs) == len(text.counted)
        total = _finite(math.fsum(logprobs) if all(map(math.isfinite, logprobs)) else math.nan)
        has_ratio = total is not None and text.covered_bytes > 0
        details = None
        if self._plan.detail:
            named = zip(text.counted, self._tokenizer.names(text.counted), logprobs, strict=True)
            details = tuple(TokenScore(token=t, text=piece, logprob=_finite(value)) for t, piece, value in named)
        return TextScore(
            logprob=total,
            tokens=len(text.counted),
            bytes=text.covered_bytes,
            bits_per_byte=-(total or 0.0) / (text.covered_bytes * math.log(2)) if has_ratio else None,
            token_logprobs=details,
        )


def pair_score(good: TextScore, bad: TextScore) -> PairScore:
    """Compare two texts. A tie is wrong, and so is a sum that is not finite.

    Args:
        good: Score of the text that should be more likely.
        bad: Score of the other.

    Returns:
        The verdict.
    """
    if good.logprob is None or bad.logprob is None:
        return PairScore(good=good, bad=bad, correct=False, margin=None)
    return PairScore(good=good, bad=bad, correct=good.logprob > bad.logprob, margin=good.logprob - bad.logprob)


@dataclass(frozen=True)
class _Span:
    """A window as a part of a sequence: the model reads from `begin` to `end`, and `first` and the next count."""

    begin: int
    end: int  # index of the last counted token, which is not read
    first: int


@dataclass(frozen=True)
class _Encoded:
    """A text in tokens. Those from `first` on end behind the prefix; they cover `covered` bytes each of the text."""

    tokens: tuple[int, ...]
    first: int
    covered: tuple[int, ...]  # bytes of the text by token, from `first` on

    @classmethod
    def of(cls, item: ScoreText, tokenizer: Tokenizer) -> _Encoded:
        if isinstance(item, tuple):
            known = [token if token < tokenizer.n_vocab else 0 for token in item]  # unknown ones are reported later
            return cls(item, 0, tuple(tokenizer.text_sizes(known)))
        text, prefix = (item.text, item.prefix) if isinstance(item, PrefixedText) else (item, "")
        tokens = tokenizer.encode(prefix + text)
        border = len(prefix.encode())
        ends = list(itertools.accumulate(tokenizer.text_sizes(tokens)))
        first = next((at for at, end in enumerate(ends) if end > border), len(tokens))
        starts = [border, *ends[first:]]
        return cls(tuple(tokens), first, tuple(end - start for start, end in itertools.pairwise(starts)))

    def spans(self, shift: int, block_size: int, stride: int | None) -> Iterator[_Span]:
        """Cut the sequence, in which the tokens begin at `shift`, so that every token that can count does so once."""
        first, last = max(self.first + shift, 1), len(self.tokens) + shift - 1
        end = block_size  # the first window counts all that it can
        while first <= last:
            if first <= end:
                yield _Span(end - block_size, min(end, last), first)
                first = end + 1
            end += stride or 1

    def planned(self, sequence: tuple[int, ...], spans: Sequence[_Span]) -> PlannedText:
        windows = tuple(Window(sequence[s.begin : s.end + 1], s.first - s.begin) for s in spans)
        counted = sum(s.end + 1 - s.first for s in spans)
        return PlannedText(
            counted=self.tokens[len(self.tokens) - counted :],
            covered_bytes=sum(self.covered[len(self.covered) - counted :]),
            windows=windows,
        )


def _items(request: InferenceScoreRequest) -> Iterator[tuple[str, ScoreText]]:
    """Every text with its JSON pointer."""
    for number, text in enumerate(request.texts or ()):
        yield f"/texts/{number}", text
    for number, pair in enumerate(request.pairs or ()):
        yield f"/pairs/{number}/good", PrefixedText(text=pair.good, prefix=pair.prefix)
        yield f"/pairs/{number}/bad", PrefixedText(text=pair.bad, prefix=pair.prefix)


def _problems(
    pointer: str, item: ScoreText, text: _Encoded, stride: int | None, tokenizer: Tokenizer, block_size: int
) -> Iterable[FieldProblem]:
    if isinstance(item, tuple):
        yield from unknown_ids(item, tokenizer.n_vocab, pointer)
    if stride is None and len(text.tokens) > block_size:
        detail = f"has {len(text.tokens):,} tokens, the model takes {block_size:,}; with stride it is read in windows"
        yield FieldProblem(pointer, detail, len(text.tokens))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
