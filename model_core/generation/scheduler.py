"""Decides what the model computes next: one token of every running row, then chunks of prompts, then of scores.

It has no thread and no lock: `Engine` drives a scheduler from its own thread, `generate` from the caller's. Rows of the
cache are always the first ones: those that generate, then those that are read. When one leaves, others move into the
gap. What a row computes depends on nothing but its own request: a prompt is read in chunks of `CHUNK` from its own
start, whatever runs beside it, and `ModelRunner` gives a row the same bits in any crowd.

Shapes: A rows that generate, N tokens of all chunks, T tokens of one, C n_embd, V ids of the tokenizer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch
from torch import Tensor

from model_core.generation.fair_queue import FairQueue
from model_core.generation.model_runner import CHUNK, ModelRunner, Prefill, PromptChunk
from model_core.generation.prefix_cache import PrefixCache
from model_core.generation.request import OpenRequest, Request, ScoreRequest
from model_core.generation.sampler import NonFiniteLogits, sample
from model_core.generation.sequence import Continuation, Occupant, ScoredSequence, scored_tokens, target_logprobs
from model_core.generation.stats import EngineStats, Meter, RequestCounts, median
from model_core.schemas import ScoredToken
from model_core.tokenizer import Tokenizer

PREFILL_TOKENS = CHUNK  # read in a step while rows generate: more would hold their tokens back
IDLE_PREFILL_TOKENS = 1024  # read in a step otherwise
_COPIED = 8  # tokens of a prompt that are copied in the time in which one is read
READ_PER_DECODE = 1.5
_PATIENCE = 8  # passes in which scores stand back behind prompts

TakeMemory = Callable[[int], bool]

_Pick = tuple[Occupant, PromptChunk]
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
        self._cache_tokens = cache_tokens or runner.rows * _rounded(runner.length)
        self._prefill_tokens = max(prefill_tokens, CHUNK)
        self._prefixes = prefix_cache or PrefixCache(0)
        self._read_per_decode = read_per_decode
        self._take_memory = take_memory or (lambda _: True)
        self._open: dict[OpenRequest, None] = {}  # in order of arrival
        self._texts: FairQueue[Continuation] = FairQueue()
        self._scores: FairQueue[ScoredSequence] = FairQueue()
        self._rows: list[Occupant] = []
        self._generating = 0  # the first rows; the others are read
        self._readers: dict[Request, Continuation] = {}  # who reads the prompt of a request, in order
        self._last_read: dict[str, int] = {}  # number of the last chunk of a client
        self._chunks = 0  # read so far
        self._impatience = 0  # passes without a chunk of a score
        self._picked: list[_Pick] = []  # of the pass that has begun
        self._prefill: Prefill | None = None
        self._decode_s = 0.0  # of this step
        self._last_decoded_s: float | None = None
        self._cache_bytes = 0  # memory that the rows were given
        self._counted_rows = -1  # when some of it was last returned
        self.meter = Meter()
        self._return_memory()

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
            self._decode()
            self._admit()
            self._runner.use_rows(len(self._rows), self._longest)
            self._read()
        self._deliver()
        self._return_memory()
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
        if self._is_impatient() and self._scores and not self._scored_rows():
            if (first := self._next(self._scores)) is None:
                return  # the next free row is for a score
            self._rows.append(first)
        while (text := self._next(self._texts)) is not None:
            self._rows.append(text)
        self._choose_readers()
        unread: list[Occupant] = [*self._readers.values(), *self._scored_rows()]
        left = self._budget() - sum(len(occupant.ids) - occupant.read for occupant in unread)
        while left > 0 and (score := self._next(self._scores)) is not None:
            self._rows.append(score)
            left -= len(score.ids)

    def _next(self, queue: FairQueue[_T]) -> _T | None:
        """Take the next of a queue if there is a row for it, and memory."""
        if len(self._rows) == self._runner.rows:
            return None
        held = Counter(row.request.client for row in self._rows)
        half = (self._runner.rows + 1) // 2
        waiting = queue.peek(lambda client: held[client] < half or not queue.others_wait(client))
        if waiting is None or not self._fits(waiting):
            return None
        return queue.pop(waiting.request.client)

    def _fits(self, occupant: Occupant) -> bool:
        count, longest = len(self._rows) + 1, max(row.reserved for row in (*self._rows, occupant))
        if self._rows and count * _rounded(longest) > self._cache_tokens:
            return False
        return self._may_grow(self._runner.need_bytes(count, longest)) or not self._rows

    @property
    def _longest(self) -> int:
        """Most positions of a row."""
        return max((row.reserved for row in self._rows), default=0)

    def _may_grow(self, cache_bytes: int) -> bool:
        """Take memory for the cache of the rows; what the prefix cache keeps makes room for it."""
        need = max(cache_bytes, self._runner.cache_bytes)
        while not self._take_memory(need + self._prefixes.size_bytes):
            if not self._prefixes.drop_oldest():
                return False
        self._cache_bytes = need
        return True

    def _return_memory(self) -> None:
        """Let the cache shrink to the rows in use, and return what they do not need."""
        if len(self._rows) != self._counted_rows:
            self._runner.use_rows(len(self._rows), self._longest)
            self._may_grow(self._runner.need_bytes(len(self._rows), self._longest))
            self._counted_rows = len(self._rows)

    def _choose_readers(self) -> None:
        """Let one choice of each request read the prompt; the others wait for it and copy its row."""
        for row in self._rows[self._generating :]:
            if isinstance(row, Continuation) and row.request not in self._readers and self._source(row.request) is None:
                self._readers[row.request] = row

    def _source(self, request: Request) -> int | None:
        """Find a row that holds the whole prompt of a request."""
        rows = enumerate(self._rows)
        return next((at for at, row in rows if row.request is request and row.read == len(row.ids)), None)

    def _budget(self) -> int:
        return self._prefill_tokens if self._generating else max(IDLE_PREFILL_TOKENS, self._prefill_tokens)

    def _is_impatient(self) -> bool:
        return self._impatience >= _PATIENCE

    def _scored_rows(self) -> list[ScoredSequence]:
        return [row for row in self._rows[self._generating :] if isinstance(row, ScoredSequence)]

    # --- one token of every row that generates

    def _decode(self) -> None:
        now_s = time.monotonic()
        if not self._generating:
            self._last_decoded_s = None
            return
        if self._last_decoded_s is not None:
            self.meter.add_gap(now_s - self._last_decoded_s)
        self._last_decoded_s = now_s
        rows = [row for row in self._rows[: self._generating] if isinstance(row, Continuation)]
        logits = self._runner.step([row.tokens[-1] for row in rows], [row.position for row in rows])  # (A, V)
        self._draw(rows, logits)
        self._decode_s = time.monotonic() - now_s

    def _draw(self, texts: Sequence[Continuation], logits: Tensor) -> None:
        """Draw a token for each of these rows from its logits, (N, V); rows that end are free afterwards."""
        drawn = sample(logits, [text.sampler for text in texts])
        scored = self._scored(texts, drawn, logits)
        for text, token in zip(texts, drawn, strict=True):
            if not isinstance(token, int):  # before any row moves
                self._runner.clear_row(self._rows.index(text))
                text.request.fail(token)
        ended = []
        for text, token in zip(texts, drawn, strict=True):
            if isinstance(token, int):
                self.meter.completion_tokens += 1
                if text.append(token, scored.get(text)):
                    ended.append(text)
        for text in ended:  # after every row has its token, which is when `cached` counts what the step has written
            self._remove(text)
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

    # --- chunks of prompts and scores

    def _read(self) -> None:
        """Read prompts and scores in a pass over chunks, a new one or the one that has begun, and start choices."""
        began_s, budget = time.monotonic(), self._budget()
        copies = budget * _COPIED
        if self._prefill is None:
            copies = self._restore(copies)
            self._begin(budget)
        limit_s = self._read_per_decode * self._decode_s if self._generating else math.inf
        if self._prefill is not None and self._advance(self._prefill, began_s + limit_s):
            self._finish(self._prefill.hidden)
        self._fork(copies)
        self._start()

    def _begin(self, budget: int) -> None:
        """Begin a pass over chunks: prompts up to a number of tokens, and scores in what they leave."""
        prompts, scores = list(self._readers.values()), self._scored_rows()
        first = self._pick(scores, CHUNK) if self._is_impatient() else []
        picked = first + self._pick(prompts, budget - _size(first))
        if not first:
            picked += self._pick(scores, budget - _size(picked))
        has_score = any(isinstance(occupant, ScoredSequence) for occupant, _ in picked)
        self._impatience = self._impatience + 1 if (scores or self._scores) and not has_score else 0
        if picked:
            self._picked, self._prefill = picked, self._runner.begin([chunk for _, chunk in picked])

    def _advance(self, prefill: Prefill, until_s: float) -> bool:
        """Run layers of a pass until a time, at least one; returns whether it has passed all."""
        rows = {occupant: row for row, occupant in enumerate(self._rows)}
        prefill.rows = [rows.get(occupant) for occupant, _ in self._picked]
        while not prefill.is_done:
            prefill.advance()
            if time.monotonic() > until_s:
                break
        return prefill.is_done

    def _pick(self, occupants: Sequence[Occupant], budget: int) -> list[_Pick]:
        """Choose chunks up to a number of tokens: of the client whose last turn is longest ago, the first row first."""
        picked: list[_Pick] = []
        ahead = {occupant: occupant.read for occupant in occupants}
        while True:
            sizes = {it: min(CHUNK, len(it.ids) - at) for it, at in ahead.items()}
            fitting = [it for it, size in sizes.items() if 0 < size <= budget]
            if not fitting:
                return picked
            occupant = min(fitting, key=lambda it: self._last_read.get(it.request.client, 0))
            start, size = ahead[occupant], sizes[occupant]
            row = self._rows.index(occupant)
            picked.append((occupant, PromptChunk(row, start, occupant.ids[start : start + size])))
            ahead[occupant] += size
            budget -= size
            self._chunks += 1
            self._last_read[occupant.request.client] = self._chunks

    def _finish(self, hidden: Tensor) -> None:
        """Record what a pass gave: hidden states of all its chunks, (N, C)."""
        picked, self._picked, self._prefill = self._picked, [], None
        parts = torch.split(hidden, [len(chunk.tokens) for _, chunk in picked])  # (T, C) each
        last = {occupant: part[-1] for (occupant, _), part in zip(picked, parts, strict=True)}  # (C,) each
        scores = self._score(picked, parts)
        for (occupant, chunk), part, logprobs in zip(picked, parts, scores, strict=True):
            if not occupant.request.ended and occupant.read == chunk.start:
                self._take_in(occupant, chunk, part, logprobs)
        self._remove_ended()
        done = [it for it in last if it.read == len(it.ids) and not it.request.ended]
        for score in done:
            if isinstance(score, ScoredSequence):
                score.end()
                self._remove(score)
        read = [it for it in done if isinstance(it, Continuation)]
        if read:
            logits = self._runner.logits(torch.stack([last[it] for it in read]))  # (N, V)
            for reader, row in zip(read, logits, strict=True):
                reader.request.prompt_logits = row  # (V,)
                del self._readers[reader.request]

    def _score(self, picked: Sequence[_Pick], parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Compute the log probabilities of the counted tokens of each chunk, (N,) each; (0,) for chunks of prompts.

        Chunks of short texts share passes through the head, which has many more parameters than a layer.
        """
        counted = [it.counted(chunk) if isinstance(it, ScoredSequence) else (0, ()) for it, chunk in picked]
        targets = [token for _, ids in counted for token in ids]
        rows = torch.cat([part[at : at + len(ids)] for part, (at, ids) in zip(parts, counted, strict=True)])  # (N, C)
        slabs = [torch.empty(0)]
        for at in range(0, len(targets), CHUNK):
            slabs.append(target_logprobs(self._runner.logits(rows[at : at + CHUNK]), targets[at : at + CHUNK]))  # (M,)
        scores: Sequence[Tensor] = torch.split(torch.cat(slabs), [len(ids) for _, ids in counted])
        return scores

    def _take_in(self, occupant: Occupant, chunk: PromptChunk, part: Tensor, logprobs: Tensor) -> None:
        """Record what a chunk gave: last hidden states (T, C), and for a score log probabilities (N,)."""
        is_finite = bool(part.isfinite().all())
        if not is_finite:
            self._runner.clear_row(
                self._rows.index(occupant)
            )  # before any row moves; a later text would read 0 times NaN
        if isinstance(occupant, Continuation):
            if not is_finite:
                occupant.request.fail(NonFiniteLogits())
                return
            self.meter.prompt_tokens += len(chunk.tokens)
            self._keep(occupant, chunk)
            if targets := occupant.scored_targets():
                occupant.add_scores(targets, self._runner.logits(part[: len(targets)]))  # (T, V)
        else:
            self.meter.scored_tokens += len(chunk.tokens)
            occupant.add(logprobs)
        occupant.read += len(chunk.tokens)
        if isinstance(occupant, ScoredSequence) and not is_finite:
            occupant.give_up()

    def _restore(self, copies: int) -> int:
        """Take chunks of prompts from the prefix cache, at most a number of tokens; returns how many are left."""
        for reader in self._readers.values():
            while copies > 0 and (at := reader.read // CHUNK) < reader.skippable:
                block = self._prefixes.get(reader.prefix_keys[at])
                if block is None:
                    break
                self._runner.write_block(self._rows.index(reader), reader.read, block)
                reader.read += CHUNK
                copies -= CHUNK
                self.meter.cached_tokens += CHUNK
                if not reader.request.started:
                    reader.request.cached_tokens += CHUNK
        return copies

    def _keep(self, reader: Continuation, chunk: PromptChunk) -> None:
        """Keep a full chunk for later prompts."""
        if len(chunk.tokens) == CHUNK:
            key = reader.prefix_keys[chunk.start // CHUNK]
            after = self._cache_bytes + self._prefixes.size_bytes + self._runner.block_bytes
            if self._prefixes.wants(key) and self._take_memory(after):
                self._prefixes.put(key, self._runner.read_block(self._rows.index(reader), chunk.start))

    def _fork(self, copies: int) -> None:
        """Copy prompts that are read to the other choices of their requests: one, or more up to a number of tokens."""
        for row in range(self._generating, len(self._rows)):
            choice = self._rows[row]
            if isinstance(choice, Continuation) and choice.read == 0:
                source = self._source(choice.request)
                if source is not None:
                    self._runner.copy_row(source, row, len(choice.ids))
                    choice.read = len(choice.ids)
                    copies -= len(choice.ids)
                    if copies <= 0:
                        return

    def _start(self) -> None:
        """Draw the first token of every choice whose prompt is in its row."""
        ready = [it for it in self._rows[self._generating :] if isinstance(it, Continuation) and it.read == len(it.ids)]
        starting: list[Continuation] = []
        logits: list[Tensor] = []  # (V,) each
        for choice in ready:
            row = choice.request.prompt_logits
            assert row is not None
            if not choice.request.started:
                self.meter.add_first_token(time.monotonic() - choice.request.created_s)
            choice.request.count_start()
            if choice.request.max_new:
                self._promote(choice)
                starting.append(choice)
                logits.append(row)
            else:
                choice.end(choice.request.limit)
                self._remove(choice)
        if starting:
            self._draw(starting, torch.stack(logits))  # (N, V)

    # --- rows

    def _promote(self, choice: Continuation) -> None:
        """Move a row to those that generate."""
        row, target = self._rows.index(choice), self._generating
        if row != target:
            self._runner.swap_rows(row, target)
            self._rows[row], self._rows[target] = self._rows[target], self._rows[row]
        self._generating += 1

    def _remove(self, occupant: Occupant) -> None:
        """Free a row; the last row of its kind moves into the gap, and the last row of all into that row's."""
        row = self._rows.index(occupant)
        if row < self._generating:
            self._generating -= 1
            self._move(self._generating, row)
            row = self._generating
        self._move(len(self._rows) - 1, row)
        self._rows.pop()
        self._runner.free_row(len(self._rows))

    def _move(self, source: int, target: int) -> None:
        if source != target:
            occupant = self._rows[source]
            reading = [chunk.end for it, chunk in self._picked if it is occupant]
            self._runner.copy_row(source, target, max([occupant.cached, *reading]))
            self._rows[target] = occupant

    def _remove_ended(self) -> None:
        """Forget requests that have ended, with all that they hold."""
        ended = {request for request in self._open if request.ended}
        if not ended:
            return
        for request in ended:
            del self._open[request]
        self._texts.discard(lambda text: text.request in ended)
        self._scores.discard(lambda score: score.request in ended)
        self._readers = {request: reader for request, reader in self._readers.items() if request not in ended}
        for occupant in [row for row in self._rows if row.request in ended]:
            self._remove(occupant)
        clients = {row.request.client for row in self._rows}
        self._last_read = {client: turn for client, turn in self._last_read.items() if client in clients}


def _rounded(length: int) -> int:
    return -(-length // CHUNK) * CHUNK


def _size(picked: Sequence[_Pick]) -> int:
    return sum(len(chunk.tokens) for _, chunk in picked)
