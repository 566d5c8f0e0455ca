"""Reads prompts and texts that are scored: in passes over chunks, which go on over several steps.

One choice of a request reads its prompt; the others copy its row. Chunks of prompts that were read before come from the
prefix cache.

Shapes: N tokens of all chunks, T tokens of one, C n_embd, V ids of the tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from model_core.generation.forward.model_runner import CHUNK, ModelRunner, Prefill, PromptChunk
from model_core.generation.forward.prefix_cache import PrefixCache
from model_core.generation.request import OpenRequest, Request
from model_core.generation.sampler import NonFiniteLogits
from model_core.generation.scheduling.rows import CacheMemory, Rows
from model_core.generation.sequence import Continuation, Occupant, ScoredSequence, target_logprobs
from model_core.generation.stats import Meter

_COPIED = 8  # tokens of a prompt that are copied in the time in which one is read
_PATIENCE = 8  # passes in which scores stand back behind prompts

_Pick = tuple[Occupant, PromptChunk]


class PromptReader:
    """What is read, and how far.

    Args:
        runner: The model with its cache.
        rows: The rows in use.
        memory: Memory of both caches.
        prefixes: Beginnings of prompts.
        meter: Counts what is read.
    """

    def __init__(
        self, runner: ModelRunner, rows: Rows, memory: CacheMemory, prefixes: PrefixCache, meter: Meter
    ) -> None:
        self._runner, self._rows, self._memory, self._prefixes, self._meter = runner, rows, memory, prefixes, meter
        self._readers: dict[Request, Continuation] = {}  # who reads the prompt of a request, in order
        self._last_read: dict[str, int] = {}  # number of the last chunk of a client
        self._chunks = 0  # read so far
        self._impatience = 0  # passes without a chunk of a score
        self._picked: list[_Pick] = []  # of the pass that has begun
        self._prefill: Prefill | None = None

    @property
    def is_impatient(self) -> bool:
        """Whether a score comes first."""
        return self._impatience >= _PATIENCE

    @property
    def unread_tokens(self) -> int:
        """Tokens that rows still have to read."""
        reading: list[Occupant] = [*self._readers.values(), *self._rows.scores]
        return sum(len(occupant.ids) - occupant.read for occupant in reading)

    def choose_readers(self) -> None:
        """Let one choice of each request read the prompt; the others wait for it and copy its row."""
        for choice in self._rows.unread_texts:
            if choice.request not in self._readers and self._rows.with_prompt(choice.request) is None:
                self._readers[choice.request] = choice

    def read(self, budget: int, until_s: float, *, scores_wait: bool) -> None:
        """Begin a pass over chunks or go on with the one that has begun, and copy prompts that are read.

        Args:
            budget: Most tokens of a pass.
            until_s: When to stop, on the monotonic clock; at least one layer runs.
            scores_wait: Whether a score waits for a row.
        """
        copies = budget * _COPIED
        if self._prefill is None:
            copies = self._restore(copies)
            self._begin(budget, scores_wait=scores_wait)
        if self._prefill is not None and self._advance(self._prefill, until_s):
            self._finish(self._prefill.hidden)
        self._fork(copies)

    def forget(self, ended: Collection[OpenRequest]) -> None:
        """Forget requests that have ended and have no row.

        Args:
            ended: The requests.
        """
        self._readers = {request: reader for request, reader in self._readers.items() if request not in ended}
        clients = self._rows.clients
        self._last_read = {client: turn for client, turn in self._last_read.items() if client in clients}

    # --- a pass

    def _begin(self, budget: int, *, scores_wait: bool) -> None:
        """Begin a pass over chunks: prompts up to a number of tokens, and scores in what they leave."""
        prompts, scores = list(self._readers.values()), self._rows.scores
        first = self._pick(scores, CHUNK) if self.is_impatient else []
        picked = first + self._pick(prompts, budget - _size(first))
        if not first:
            picked += self._pick(scores, budget - _size(picked))
        has_score = any(isinstance(occupant, ScoredSequence) for occupant, _ in picked)
        self._impatience = self._impatience + 1 if (scores or scores_wait) and not has_score else 0
        if picked:
            self._picked, self._prefill = picked, self._runner.begin([chunk for _, chunk in picked])
            for occupant, chunk in picked:
                occupant.announced = chunk.end

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

    def _advance(self, prefill: Prefill, until_s: float) -> bool:
        """Run layers of a pass, at least one; returns whether it has passed all."""
        rows = self._rows.indices()
        prefill.rows = [rows.get(occupant) for occupant, _ in self._picked]
        while not prefill.is_done:
            prefill.advance()
            if time.monotonic() > until_s:
                break
        return prefill.is_done

    def _finish(self, hidden: Tensor) -> None:
        """Record what a pass gave: hidden states of all its chunks, (N, C)."""
        picked, self._picked, self._prefill = self._picked, [], None
        parts = torch.split(hidden, [len(chunk.tokens) for _, chunk in picked])  # (T, C) each
        last = {occupant: part[-1] for (occupant, _), part in zip(picked, parts, strict=True)}  # (C,) each
        scores = self._score(picked, parts)
        for (occupant, chunk), part, logprobs in zip(picked, parts, scores, strict=True):
            if not occupant.request.ended and occupant.read == chunk.start:
                self._take_in(occupant, chunk, part, logprobs)
        done = [it for it in last if it.read == len(it.ids) and not it.request.ended]
        for score in done:
            if isinstance(score, ScoredSequence):
                score.end()
                self._rows.remove(score)
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
            self._rows.clear(occupant)  # a later text would read 0 times NaN
        if isinstance(occupant, Continuation):
            if not is_finite:
                occupant.request.fail(NonFiniteLogits())
                return
            self._meter.prompt_tokens += len(chunk.tokens)
            self._keep(occupant, chunk)
            if targets := occupant.scored_targets():
                occupant.add_scores(targets, self._runner.logits(part[: len(targets)]))  # (T, V)
        else:
            self._meter.scored_tokens += len(chunk.tokens)
            occupant.add(logprobs)
        occupant.read += len(chunk.tokens)
        if isinstance(occupant, ScoredSequence) and not is_finite:
            occupant.give_up()

    # --- what was read before

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
                self._meter.cached_tokens += CHUNK
                if not reader.request.started:
                    reader.request.cached_tokens += CHUNK
        return copies

    def _keep(self, reader: Continuation, chunk: PromptChunk) -> None:
        """Keep a full chunk for later prompts."""
        if len(chunk.tokens) == CHUNK:
            key = reader.prefix_keys[chunk.start // CHUNK]
            if self._prefixes.wants(key) and self._memory.admits_block():
                self._prefixes.put(key, self._runner.read_block(self._rows.index(reader), chunk.start))

    def _fork(self, copies: int) -> None:
        """Copy prompts that are read to the other choices of their requests: one, or more up to a number of tokens."""
        for choice in self._rows.unread_texts:
            if choice.read == 0 and not choice.request.ended:
                source = self._rows.with_prompt(choice.request)
                if source is not None:
                    self._runner.copy_row(source, self._rows.index(choice), len(choice.ids))
                    choice.read = len(choice.ids)
                    copies -= len(choice.ids)
                    if copies <= 0:
                        return


def _size(picked: Sequence[_Pick]) -> int:
    return sum(len(chunk.tokens) for _, chunk in picked)
