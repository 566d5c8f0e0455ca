"""Decides what the model computes next: one token of every running row, then chunks of prompts, then of scores.

It has no thread and no lock: `Engine` drives a scheduler from its own thread, `generate` from the caller's. What a row
computes depends on nothing but its own request: a prompt is read in chunks of `CHUNK` from its own start, whatever runs
beside it, and `ModelRunner` gives a row the same bits in any crowd.

Shapes: A rows that generate, N of them that draw a token, V ids of the tokenizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

import torch
from torch import Tensor

from model_core.generation.forward.model_runner import CHUNK, ModelRunner
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import OpenRequest, Request, ScoreRequest
from model_core.generation.sampler import NonFiniteLogits, sample
from model_core.generation.scheduling.fair_queue import FairQueue
from model_core.generation.scheduling.prompt_reader import PromptReader
from model_core.generation.scheduling.rows import CacheMemory, Rows, TakeMemory
from model_core.generation.sequence import Continuation, ScoredSequence, scored_tokens
from model_core.generation.stats import EngineStats, Meter, RequestCounts, median
from model_core.schemas import ScoredToken
from model_core.tokenizer import Tokenizer

PREFILL_TOKENS = CHUNK  # read in a step while rows generate: more would hold their tokens back
IDLE_PREFILL_TOKENS = 1024  # read in a step otherwise
READ_PER_DECODE = 1.5

_T = TypeVar("_T", Continuation, ScoredSequence)


class Scheduler:
    """Rows in use, and who waits for one.

    Rows go to clients in turns, and to the requests of a client in order of arrival. While another client waits, no
    client gets more than half of the rows. Whoever is next waits until its longest possible text fits, so nothing is
    ever taken back, and nothing small overtakes it for ever.

    Args:
        runner: The model with its cache.
        tokenizer: Tokenizer of the model.
        cache_tokens: Most positions of the cache: rows in use times the longest of them. None: all that the runner has.
        prefill_tokens: Most tokens of prompts that a step reads while rows generate, at least `CHUNK`.
        prefix_cache: Beginnings of prompts; None keeps none.
        read_per_decode: Longest time for reading between two tokens of rows that generate, relative to the time for a
            token; at least one layer runs.
        take_memory: Called with the bytes that both caches may take from now on; returns whether they may. It must
            allow a cache of one row with all positions, and less than before. None allows everything.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        *,
        cache_tokens: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        prefix_cache: PrefixCache | None = None,
        read_per_decode: float = READ_PER_DECODE,
        take_memory: TakeMemory | None = None,
    ) -> None:
        self._runner, self._tokenizer = runner, tokenizer
        self._prefill_tokens, self._read_per_decode = max(prefill_tokens, CHUNK), read_per_decode
        self._prefixes = prefix_cache or PrefixCache(0)
        self._open: dict[OpenRequest, None] = {}  # in order of arrival
        self._texts: FairQueue[Continuation] = FairQueue()
        self._scores: FairQueue[ScoredSequence] = FairQueue()
        self._last_decoded_s: float | None = None
        self.meter = Meter()
        self._rows = Rows(runner)
        self._memory = CacheMemory(self._rows, runner, self._prefixes, cache_tokens, take_memory)
        self._reader = PromptReader(runner, self._rows, self._memory, self._prefixes, self.meter)

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return bool(self._open)

    def add(self, request: Request | ScoreRequest) -> None:
        """Enqueue a request.

        Args:
            request: The request.
        """
        self._open[request] = None
        if isinstance(request, ScoreRequest):
            for index in range(len(request.sequences)):
                self._enqueue_score(ScoredSequence(request, index))
        else:
            for index in range(request.params.n):
                self._enqueue_text(Continuation(request, index, self._tokenizer))
        self._deliver()

    def step(self) -> None:
        """Remove what was cancelled, generate a token of every row, fill free rows, and read prompts and scores."""
        started_s = time.monotonic()
        for request in self._open:
            request.end_if_due(started_s)
        self._remove_ended()
        before = self._work_done()
        with torch.inference_mode(), torch.autocast(self._runner.device.partition(":")[0], enabled=False):
            decode_s = self._decode()
            self._admit()
            self._memory.allocate()
            limit_s = self._read_per_decode * decode_s if self._rows.generating else math.inf
            self._reader.read(self._budget(), time.monotonic() + limit_s, scores_wait=bool(self._scores))
            self._remove_ended()
            self._start()
        self._deliver()
        self._memory.fit()
        self.meter.add_work(self._work_done() - before, time.monotonic() - started_s)

    def stats(self, requests: RequestCounts) -> EngineStats:
        """Take a snapshot, from any thread.

        Args:
            requests: The requests of its engine.

        Returns:
            The snapshot.
        """
        meter = self.meter
        first_token_s, gap_s = meter.recent()
        return EngineStats(
            **asdict(requests),
            prompt_tokens=meter.prompt_tokens,
            completion_tokens=meter.completion_tokens,
            cached_tokens=meter.cached_tokens,
            scored_tokens=meter.scored_tokens,
            rows=len(self._rows),
            max_rows=self._runner.rows,
            waiting=len(self._texts) + len(self._scores),
            tokens_per_s=meter.tokens_per_s,
            first_token_s=median(first_token_s),
            gap_s=median(gap_s),
            longest_gap_s=max(gap_s, default=None),
            cache_bytes=self._runner.cache_bytes,
            prefix_bytes=self._prefixes.size_bytes,
            prefix_hits=self._prefixes.hits,
        )

    def _enqueue_text(self, text: Continuation) -> None:
        request = text.request
        if request.max_new == 0 and (text.index > 0 or not request.wants_prompt):
            text.end(request.limit)
        else:
            self._texts.push(request.client, text)

    def _enqueue_score(self, score: ScoredSequence) -> None:
        if score.ids:
            self._scores.push(score.request.client, score)
        else:
            score.end()

    def _deliver(self) -> None:
        """Call the callbacks of requests that gained something."""
        for request in self._open:
            request.flush()
        self._remove_ended()

    def _work_done(self) -> int:
        return self.meter.prompt_tokens + self.meter.completion_tokens + self.meter.scored_tokens

    # --- who gets a row

    def _admit(self) -> None:
        """Give free rows to whoever is next."""
        if self._reader.is_impatient and self._scores and not self._rows.scores:
            if (first := self._next(self._scores)) is None:
                return  # the next free row is for a score
            self._rows.append(first)
        while (text := self._next(self._texts)) is not None:
            self._rows.append(text)
        self._reader.choose_readers()
        left = self._budget() - self._reader.unread_tokens
        while left > 0 and (score := self._next(self._scores)) is not None:
            self._rows.append(score)
            left -= len(score.ids)

    def _next(self, queue: FairQueue[_T]) -> _T | None:
        """Take the next of a queue if there is a row for it, and memory."""
        if self._rows.is_full:
            return None
        held, half = self._rows.clients, (self._runner.rows + 1) // 2
        waiting = queue.peek(lambda client: held[client] < half or not queue.others_wait(client))
        if waiting is None or not self._memory.admits(waiting):
            return None
        return queue.pop(waiting.request.client)

    def _budget(self) -> int:
        return self._prefill_tokens if self._rows.generating else max(IDLE_PREFILL_TOKENS, self._prefill_tokens)

    # --- one token of every row that generates

    def _decode(self) -> float:
        """Generate a token of every row that generates; returns the time that it took."""
        began_s = time.monotonic()
        rows = self._rows.texts
        if not rows:
            self._last_decoded_s = None
            return 0.0
        if self._last_decoded_s is not None:
            self.meter.add_gap(began_s - self._last_decoded_s)
        self._last_decoded_s = began_s
        logits = self._runner.step([row.tokens[-1] for row in rows], [row.position for row in rows])  # (A, V)
        self._draw(rows, logits)
        return time.monotonic() - began_s

    def _draw(self, texts: Sequence[Continuation], logits: Tensor) -> None:
        """Draw a token for each of these rows from its logits, (N, V); rows that end are free afterwards."""
        drawn = sample(logits, [text.sampler for text in texts])
        scored = self._scored(texts, drawn, logits)
        for text, token in zip(texts, drawn, strict=True):
            if not isinstance(token, int):  # before any row moves
                self._rows.clear(text)
                text.request.fail(token)
        ended = []
        for text, token in zip(texts, drawn, strict=True):
            if isinstance(token, int):
                self.meter.completion_tokens += 1
                if text.append(token, scored.get(text)):
                    ended.append(text)
        for text in ended:  # after every row has its token, which is when `cached` counts what the step has written
            self._rows.remove(text)
        self._remove_ended()

    def _scored(
        self, texts: Sequence[Continuation], drawn: Sequence[int | NonFiniteLogits], logits: Tensor
    ) -> dict[Continuation, ScoredToken]:
        """Compute the log probabilities of drawn tokens, where they are requested; logits (N, V)."""
        wanted = [
            (at, text, token, text.request.params.logprobs)
            for at, (text, token) in enumerate(zip(texts, drawn, strict=True))
            if text.request.params.logprobs is not None and isinstance(token, int)
        ]
        if not wanted:
            return {}
        rows, scored, tokens, counts = zip(*wanted, strict=True)
        return dict(zip(scored, scored_tokens(self._tokenizer, tokens, logits[list(rows)], counts), strict=True))

    def _start(self) -> None:
        """Draw the first token of every choice whose prompt is in its row."""
        ready = [choice for choice in self._rows.unread_texts if choice.read == len(choice.ids)]
        starting: list[Continuation] = []
        logits: list[Tensor] = []  # (V,) each
        for choice in ready:
            row = choice.request.prompt_logits
            assert row is not None
            if not choice.request.started:
                self.meter.add_first_token(time.monotonic() - choice.request.created_s)
            choice.request.count_start()
            if choice.request.max_new:
                self._rows.promote(choice)
                starting.append(choice)
                logits.append(row)
            else:
                choice.end(choice.request.limit)
                self._rows.remove(choice)
        if starting:
            self._draw(starting, torch.stack(logits))  # (N, V)

    def _remove_ended(self) -> None:
        """Forget requests that have ended, with all that they hold."""
        ended = {request for request in self._open if request.ended}
        if not ended:
            return
        for request in ended:
            del self._open[request]
        self._texts.discard(lambda text: text.request in ended)
        self._scores.discard(lambda score: score.request in ended)
        self._rows.remove_requests(ended)
        self._reader.forget(ended)
